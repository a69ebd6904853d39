"""QSM's networks: Xavier-uniform weights and zero biases, no normalisation.

Source: Alescontrela/score_matching_rl, jaxrl5/networks. Shapes: B batch, N critics, D numbers in an action chunk.
"""

import math
from itertools import pairwise

import torch as th
from torch import nn

from sb3_flow.common.activations import Mish, ReLU
from sb3_flow.common.layers import ContextLinear, EnsembleLinear, xavier

FOURIER_FEATURES = 64
FOURIER_STD = 0.2
TIME_ARCH = (128, 128)


def critic_mlp(n_members: int, in_features: int, net_arch: list[int]) -> nn.Sequential:
    """N independent MLPs with ReLU and one output each.

    :param n_members: N
    :param in_features: width of the input (N, B, in_features)
    :param net_arch: widths of the hidden layers
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        layers += [xavier(EnsembleLinear(n_members, in_features, width)), ReLU()]
        in_features = width
    return nn.Sequential(*layers, xavier(EnsembleLinear(n_members, in_features, 1)))


class StepEmbedding(nn.Module):
    """Sines and cosines of learned frequencies of the step, through a small MLP with Mish: (*, 1) -> (*, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(FOURIER_STD * th.randn(FOURIER_FEATURES // 2))
        first, last = TIME_ARCH
        self.net = nn.Sequential(xavier(nn.Linear(FOURIER_FEATURES, first)), Mish(), xavier(nn.Linear(first, last)))

    def forward(self, step: th.Tensor) -> th.Tensor:
        phase = 2 * math.pi * step * self.frequencies
        out: th.Tensor = self.net(th.cat([phase.cos(), phase.sin()], dim=-1))
        return out


class EpsilonNet(nn.Module):
    """The predicted noise epsilon(s, x, t), an MLP with Mish.

    :param features_dim: width of the state features
    :param chunk_dim: D
    :param net_arch: hidden widths
    """

    def __init__(self, features_dim: int, chunk_dim: int, net_arch: list[int]):
        super().__init__()
        self.step = StepEmbedding()
        self.first = ContextLinear(features_dim, chunk_dim + TIME_ARCH[-1], net_arch[0])
        xavier(self.first)
        layers: list[nn.Module] = [Mish()]
        for width_in, width in pairwise(net_arch):
            layers += [xavier(nn.Linear(width_in, width)), Mish()]
        self.rest = nn.Sequential(*layers, xavier(nn.Linear(net_arch[-1], chunk_dim)))

    def encode(self, features: th.Tensor) -> th.Tensor:
        """What depends on the state alone, once a rollout.

        :param features: (B, features_dim)
        """
        return self.first.context(features)

    def forward(self, context: th.Tensor, x: th.Tensor, step: th.Tensor) -> th.Tensor:
        """The predicted noise, (B, D).

        :param context: result of `encode`
        :param x: (B, D)
        :param step: (B, 1) or (1, 1), from 0 to T - 1
        """
        embedded = self.step(step).to(x.dtype).expand(x.shape[0], TIME_ARCH[-1])
        out: th.Tensor = self.rest(self.first(context, th.cat([x, embedded], dim=1)))
        return out.to(x.dtype)
