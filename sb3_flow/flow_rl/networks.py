"""FlowRL's networks and its integrator: LayerNorm after every hidden layer, Xavier-uniform weights, zero biases.

Source: bytedance/FlowRL, model/model.py. Shapes: B batch, N members, D numbers in an action chunk.
"""

from itertools import pairwise
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_flow.common.encoding import ObservingModel
from sb3_flow.common.flow import VelocityFn
from sb3_flow.common.layers import ContextLinear, EnsembleLayerNorm, EnsembleLinear, xavier
from sb3_flow.common.velocity import ODEVelocity


def value_mlp(n_members: int, in_features: int, net_arch: list[int]) -> nn.Sequential:
    """N independent nets with one output each: (N, B, in_features) -> (N, B, 1).

    Around the hidden layers, with GELU, stand an embedding of the first one's width and a projection of the last one's,
    without.

    :param n_members: N
    :param in_features: width of the input
    :param net_arch: widths of the hidden layers; without any, the net is linear
    """
    if not net_arch:
        return nn.Sequential(xavier(EnsembleLinear(n_members, in_features, 1)))
    widths = [in_features, net_arch[0], *net_arch, net_arch[-1]]
    layers: list[nn.Module] = []
    for width_in, width in pairwise(widths):
        layers += [xavier(EnsembleLinear(n_members, width_in, width)), EnsembleLayerNorm(n_members, width), nn.GELU()]
    del layers[2], layers[-1]  # after the embedding and after the projection
    return nn.Sequential(*layers, xavier(EnsembleLinear(n_members, net_arch[-1], 1)))


class PolicyVelocity(ODEVelocity):
    """The velocity v(s, x, t) of the policy, an MLP with ELU.

    :param features_dim: width of the state features
    :param chunk_dim: D
    :param net_arch: hidden widths
    """

    def __init__(self, features_dim: int, chunk_dim: int, net_arch: list[int]):
        first = xavier(ContextLinear(features_dim, chunk_dim + 1, net_arch[0]))
        layers: list[nn.Module] = [nn.LayerNorm(net_arch[0]), nn.ELU()]
        for width_in, width in pairwise(net_arch):
            layers += [xavier(nn.Linear(width_in, width)), nn.LayerNorm(width), nn.ELU()]
        super().__init__(first, nn.Sequential(*layers, xavier(nn.Linear(net_arch[-1], chunk_dim))))


def midpoint(velocity: VelocityFn, x: th.Tensor, steps: int) -> th.Tensor:
    """The point at t = 1 of the ODE `dx = v dt`, by the midpoint rule: two velocities a step, an error of order 2.

    :param velocity: `(x, t) -> Velocity`; t has shape (1, 1)
    :param x: (B, D) the point at t = 0
    :param steps: K
    """
    dt = 1 / steps
    for i in range(steps):
        middle = x + velocity(x, x.new_full((1, 1), i * dt)).v * (dt / 2)
        x = x + velocity(middle, x.new_full((1, 1), (i + 0.5) * dt)).v * dt
    return x


class BehaviorValue(ObservingModel):
    """V_beta(s): the value of the best replayed actions.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param net_arch: hidden widths
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        net_arch: list[int],
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, features_dim, normalize_images)
        self.value = value_mlp(1, features_dim, net_arch)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """V of B observations, (B,)."""
        features = self.extract_features(obs, self.features_extractor)
        value: th.Tensor = self.value(features[None])[0, :, 0]  # (1, B, features) -> (B,)
        return value.to(next(self.value.parameters()).dtype)  # from bf16 under autocast
