"""SAC's squashed Gaussian as an actor of SACFlow: what is left of it without the flow, on the same critics."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_flow.common.flow import RolloutKind, Velocity
from sb3_flow.common.velocity import LogStdHead, VelocityNet
from sb3_flow.sac_flow.policies import FlowPolicy


class GaussianVelocity(VelocityNet):
    """The field `mu(s) - x`: one Euler step from anywhere ends at mu(s), and its noise makes that N(mu, sigma^2).

    :param features_dim: width of the state features
    :param action_dim: D
    :param log_std_range: lowest and highest log-std
    :param noise_std: fixed sigma, or None for a learned one
    :param net_arch: hidden widths
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        log_std_range: tuple[float, float],
        noise_std: float | None,
        net_arch: list[int],
    ):
        super().__init__()
        self.hidden = nn.Sequential(*create_mlp(features_dim, -1, net_arch))
        self.mean_head = nn.Linear(net_arch[-1], action_dim)
        self.log_std_head = LogStdHead(net_arch[-1], action_dim, log_std_range, noise_std)

    def encode(self, features: th.Tensor) -> Velocity:
        hidden = self.hidden(features)
        return Velocity(self.mean_head(hidden), self.log_std_head(hidden))

    def forward(self, context: Velocity, x: th.Tensor, t: th.Tensor) -> Velocity:
        return Velocity(context.v - x, context.log_std)


class GaussianPolicy(FlowPolicy):
    """`tanh(mu(s) + sigma(s) eps)` and its exact log-density, as SAC's, behind the flows' BatchRenorm of the features.

    The parameters are those of `FlowPolicy`; one step with the noise of "noise" is what makes it a Gaussian.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        flow_steps: int = 1,
        rollout: RolloutKind = "noise",
        **kwargs: Any,
    ):
        super().__init__(observation_space, action_space, lr_schedule, flow_steps=flow_steps, rollout=rollout, **kwargs)

    def make_velocity(self, features_dim: int) -> VelocityNet:
        return GaussianVelocity(
            features_dim, self.chunk_dim, self.log_std_range, self.noise_std, self.arch("pi", [256, 256])
        )
