"""DIME's control net: an MLP on [x, state, time], with tanh-approximated GELU and an output of almost 0 at the start.

Source: diffusion/common/models/pisgrad_net.py of the authors' code. Shapes: B batch, K steps, D numbers in an action
chunk.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn.functional import linear

from sb3_flow.common.activations import TanhGELU

HIGHEST_OUTPUT = 1e4
INITIAL_WEIGHT = 1e-8  # of the last layer


class Context(NamedTuple):
    """What of the first layer does not depend on x."""

    state: th.Tensor  # (B, width)
    time: th.Tensor  # (K, width)


class ControlNet(nn.Module):
    """The control u(x, s, i) of a process of K steps.

    :param features_dim: width of the state features
    :param chunk_dim: D
    :param steps: K
    :param net_arch: hidden widths; the first one is that of the time embedding, too
    """

    frequencies: th.Tensor

    def __init__(self, features_dim: int, chunk_dim: int, steps: int, net_arch: list[int]):
        super().__init__()
        width = net_arch[0]
        self.steps = steps
        self.phase = nn.Parameter(th.zeros(1, width))
        self.register_buffer("frequencies", th.linspace(0.1, 100, width), persistent=False)  # of the step's number
        self.time_net = nn.Sequential(_linear(2 * width, width), TanhGELU(), _linear(width, width))
        # One layer on [x, s, t], whose halves are kept apart: s is the same in all steps, t in all states
        first = _linear(chunk_dim + features_dim + width, width)
        parts = th.split(first.weight.detach(), [chunk_dim, features_dim, width], dim=1)
        self.x_weight, self.state_weight, self.time_weight = (nn.Parameter(part.clone()) for part in parts)
        self.bias = first.bias
        hidden = [module for sizes in pairwise(net_arch) for module in (TanhGELU(), _linear(*sizes))]
        last = nn.Linear(net_arch[-1], chunk_dim)
        nn.init.constant_(last.weight, INITIAL_WEIGHT)
        nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(*hidden, TanhGELU(), last)

    def encode(self, features: th.Tensor) -> Context:
        """What all steps share.

        :param features: (B, features_dim)
        """
        i = th.arange(self.steps, dtype=self.phase.dtype, device=self.phase.device).unsqueeze(1)
        phase = i * self.frequencies + self.phase  # (K, width)
        time = self.time_net(th.cat([phase.sin(), phase.cos()], dim=1))
        features = features.to(self.bias.dtype)  # SB3's preprocessing makes float32 of them
        return Context(linear(features, self.state_weight, self.bias), linear(time, self.time_weight))

    def forward(self, context: Context, i: int, x: th.Tensor) -> th.Tensor:
        """The control in step i, (B, D).

        :param context: of `encode`
        :param i: number of the step
        :param x: (B, D) current point
        """
        out: th.Tensor = self.rest(linear(x, self.x_weight) + context.state + context.time[i])
        return out.to(x.dtype).clamp(-HIGHEST_OUTPUT, HIGHEST_OUTPUT)


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer as Flax begins it: a normal distribution cut off at two standard deviations, biases 0."""
    layer = nn.Linear(in_features, out_features)
    # What the cut takes of the standard deviation is put back
    std = 1 / math.sqrt(in_features) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer
