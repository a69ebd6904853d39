"""DIME's policy: an actor that is a controlled diffusion process, with categorical critics.

Shapes: B batch, K steps, D numbers in an action chunk.
"""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.nn.functional import softplus

from sb3_flow.common.checks import require_integer
from sb3_flow.common.critics import CRITIC_KINDS
from sb3_flow.common.ou import ControlledOU, PathCost, cosine_schedule, path_cost, simulate
from sb3_flow.common.policies import ChunkActor, ChunkPolicy, ImagePolicy
from sb3_flow.dime.networks import ControlNet

CRITIC = CRITIC_KINDS["categorical"]._replace(net_arch=[2048, 2048], verdict="mean")
PRIOR_STD = 2.5
# Where two learned numbers begin: the largest step, and the friction of every dimension of the action
INITIAL_DT = 0.1
INITIAL_FRICTION = 1.0


class DIMEActor(ChunkActor):
    """A process from N(0, 2.5^2 I) whose control is learned; an action is the squashed end of a path.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param net_arch: hidden widths of the control net
    :param diffusion_steps: K
    :param normalize_images: divide images by 255
    """

    schedule: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        chunk_dim: int,
        net_arch: list[int],
        diffusion_steps: int,
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, features_dim, chunk_dim, normalize_images)
        self.net_arch = net_arch
        self.diffusion_steps = diffusion_steps
        self.control = ControlNet(features_dim, chunk_dim, diffusion_steps, net_arch)
        # Both before softplus
        self.dt = nn.Parameter(th.full((1,), _inverse_softplus(INITIAL_DT)))
        self.friction = nn.Parameter(th.full((chunk_dim,), _inverse_softplus(INITIAL_FRICTION)))
        self.register_buffer("schedule", cosine_schedule(diffusion_steps), persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(net_arch=self.net_arch, diffusion_steps=self.diffusion_steps)
        return data

    def process(self, obs: PyTorchObs) -> ControlledOU:
        """The process in B states, which are encoded once."""
        context = self.control.encode(self.extract_features(obs, self.features_extractor))
        # (K, 1) and (D,) -> (K, D)
        step_sizes = softplus(self.dt) * self.schedule.unsqueeze(1) / softplus(self.friction)
        return ControlledOU(lambda i, x: self.control(context, i, x), step_sizes, PRIOR_STD)

    def action_and_cost(self, obs: PyTorchObs, noise: th.Tensor) -> tuple[th.Tensor, PathCost]:
        """Actions (B, D) in [-1, 1], and what the paths to them cost.

        :param obs: B observations
        :param noise: (K + 1, B, D) standard normal
        """
        process = self.process(obs)
        points = simulate(process, noise)
        return th.tanh(points[-1]), path_cost(process, points, noise)

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return th.tanh(simulate(self.process(obs), noise)[-1])

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return self.diffusion_steps + 1, batch_size, self.chunk_dim


class DIMEPolicy(ChunkPolicy):
    """Actor and critics of DIME.

    :param net_arch: hidden widths, a list for all nets or `dict(pi=..., qf=...)`; None for the authors': 3 x 256 for
        the control, 2 x 2048 for the critics
    :param diffusion_steps: K >= 1, Euler-Maruyama steps of the process
    :param critic_pessimism: rho >= 0, their verdict is mean - rho std; None for the mean
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ChunkPolicy`.
    """

    critic_kind = CRITIC
    adam_beta1 = 0.5
    actor: DIMEActor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        diffusion_steps: int = 16,
        **kwargs: Any,
    ):
        require_integer("diffusion_steps", diffusion_steps)
        self.diffusion_steps = diffusion_steps  # before super().__init__(), which builds the nets
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_actor(self) -> DIMEActor:
        return DIMEActor(
            **self.net_arguments(),
            chunk_dim=self.chunk_dim,
            net_arch=self.arch("pi", [256, 256, 256]),
            diffusion_steps=self.diffusion_steps,
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(diffusion_steps=self.diffusion_steps)
        return data


class DIMECnnPolicy(ImagePolicy, DIMEPolicy):
    """DIME on images, also on those that are not uint8. The parameters are those of `DIMEPolicy`."""


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))
