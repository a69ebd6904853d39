"""ReinFlow's networks: a residual velocity net and value net, and the net of the noise.

Source: ReinFlow/ReinFlow, model/flow/mlp_flow.py and model/common/mlp.py. Shapes: B batch, D numbers in an action
chunk.
"""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_flow.common.activations import Mish, ReLU
from sb3_flow.common.checks import require
from sb3_flow.common.encoding import ObservingModel
from sb3_flow.common.layers import ContextLinear, Residual
from sb3_flow.common.velocity import ODEVelocity

TIME_DIM = 16
LONGEST_PERIOD = 10_000.0


class Sinusoid(nn.Module):
    """Sines and cosines of the time: (*, 1) -> (*, TIME_DIM)."""

    frequencies: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        exponents = th.linspace(0, 1, TIME_DIM // 2)
        self.register_buffer("frequencies", LONGEST_PERIOD**-exponents, persistent=False)

    def forward(self, t: th.Tensor) -> th.Tensor:
        phase = t * self.frequencies
        return th.cat([phase.sin(), phase.cos()], dim=-1)


class ResidualVelocity(ODEVelocity):
    """The velocity v(s, x, t): a residual MLP on [s, x, embedding of t]. Its noise is the noise net's.

    :param features_dim: width of the state features
    :param chunk_dim: D
    :param net_arch: hidden widths, see `check_residual`
    """

    def __init__(self, features_dim: int, chunk_dim: int, net_arch: list[int]):
        check_residual(net_arch)
        time = nn.Sequential(Sinusoid(), nn.Linear(TIME_DIM, 2 * TIME_DIM), Mish(), nn.Linear(2 * TIME_DIM, TIME_DIM))
        first = ContextLinear(features_dim, chunk_dim + TIME_DIM, net_arch[0])
        super().__init__(first, nn.Sequential(*_after_first(net_arch, ReLU, chunk_dim)), time)


class NoiseNet(nn.Module):
    """What sigma is made of, before it is bounded: an MLP with tanh on [s, sines of t], (B, D).

    :param features_dim: width of the state features
    :param chunk_dim: D
    :param net_arch: hidden widths
    """

    def __init__(self, features_dim: int, chunk_dim: int, net_arch: list[int]):
        super().__init__()
        self.time = Sinusoid()
        self.net = nn.Sequential(*create_mlp(features_dim + TIME_DIM, chunk_dim, net_arch, nn.Tanh))

    def forward(self, features: th.Tensor, t: th.Tensor) -> th.Tensor:
        time = self.time(t).expand(features.shape[0], TIME_DIM)
        raw: th.Tensor = self.net(th.cat([features, time], dim=1))
        return raw


class ValueNet(ObservingModel):
    """V(s): a residual MLP with Mish.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param net_arch: hidden widths, see `check_residual`
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        net_arch: list[int],
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, features_dim, normalize_images)
        check_residual(net_arch)
        self.net = nn.Sequential(nn.Linear(features_dim, net_arch[0]), *_after_first(net_arch, Mish, 1))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """V of B observations, (B,)."""
        values: th.Tensor = self.net(self.extract_features(obs, self.features_extractor))
        return values.squeeze(1)


def check_residual(net_arch: list[int]) -> None:
    """Refuse hidden widths that make no residual MLP: one layer, then blocks of two.

    :raises ValueError: for an even number of layers, or different widths
    """
    fits = len(net_arch) % 2 == 1 and len(set(net_arch)) == 1
    advice = "a residual net has a first layer and blocks of two, all of one width: [width], 3 times, 5 times, ..."
    require(fits, "net_arch", net_arch, advice)


def _after_first(net_arch: list[int], activation: type[nn.Module], out_features: int) -> list[nn.Module]:
    """The blocks and the last layer."""
    width = net_arch[0]
    blocks = [
        Residual(activation(), nn.Linear(width, width), activation(), nn.Linear(width, width))
        for _ in range(len(net_arch) // 2)
    ]
    return [*blocks, nn.Linear(width, out_features)]
