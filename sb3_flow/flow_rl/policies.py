"""FlowRL's policy: an actor that integrates by the midpoint rule, critics, and those of the replayed actions.

Shapes: B batch, D numbers in an action chunk.
"""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_flow.common.checks import require_integer
from sb3_flow.common.critics import CriticKind, FlowCritic
from sb3_flow.common.flow import Line, VelocityFn
from sb3_flow.common.policies import ChunkActor, ChunkPolicy, ImagePolicy
from sb3_flow.flow_rl.networks import BehaviorValue, PolicyVelocity, midpoint, value_mlp

CRITIC = CriticKind(value_mlp, [512, 512], has_target=True, verdict="min")


class MidpointActor(ChunkActor):
    """A K-step flow policy: `tanh` of where the midpoint rule gets to from noise clamped to [-1, 1].

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param net_arch: hidden widths
    :param flow_steps: K
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        chunk_dim: int,
        net_arch: list[int],
        flow_steps: int,
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, features_dim, chunk_dim, normalize_images)
        self.net_arch = net_arch
        self.flow_steps = flow_steps
        self.velocity = PolicyVelocity(features_dim, chunk_dim, net_arch)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(net_arch=self.net_arch, flow_steps=self.flow_steps)
        return data

    def field(self, obs: PyTorchObs) -> VelocityFn:
        """The velocity in B states, which are encoded once: `(x, t) -> Velocity`."""
        context = self.velocity.encode(self.extract_features(obs, self.features_extractor))
        return lambda x, t: self.velocity(context, x, t)

    def action_in(self, velocity: VelocityFn, noise: th.Tensor) -> th.Tensor:
        """Actions (B, D) in [-1, 1] in the states of a `field`, from x_0 = noise (B, D)."""
        return th.tanh(midpoint(velocity, noise, self.flow_steps))

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return self.action_in(self.field(obs), noise)

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return batch_size, self.chunk_dim

    def cut_noise(self, noise: th.Tensor) -> th.Tensor:
        return noise.clamp(-1, 1)

    def sample_line(self, batch_size: int) -> Line:
        x_0, t = super().sample_line(batch_size)
        return Line(self.cut_noise(x_0), t)


class FlowRLPolicy(ChunkPolicy):
    """Actor and critics of FlowRL.

    :param net_arch: hidden widths, a list for all nets or `dict(pi=..., qf=...)`, qf for values as well; None for the
        authors' 512, 512
    :param flow_steps: K >= 1, midpoint steps of two velocities each
    :param n_critics: number of critics, of Q and of Q_beta each
    :param critic_pessimism: rho >= 0, their verdict is mean - rho std; None for the lowest
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ChunkPolicy`.
    """

    critic_kind = CRITIC
    actor: MidpointActor
    behavior_critic: FlowCritic
    behavior_critic_target: FlowCritic
    behavior_value: BehaviorValue

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        flow_steps: int = 1,
        **kwargs: Any,
    ):
        require_integer("flow_steps", flow_steps)
        self.flow_steps = flow_steps  # before super().__init__(), which builds the nets
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        # All critics start as one
        self.behavior_critic = self._make_critic(self.make_features_extractor())
        self.behavior_critic.load_state_dict(self.critic.state_dict(), strict=not self.share_features_extractor)
        self.behavior_critic_target = self._make_target(self.behavior_critic)
        self.behavior_value = self._make_behavior_value()
        for net in (self.behavior_critic, self.behavior_value):
            net.optimizer = self._make_optimizer(net, lr_schedule)

    def _make_actor(self) -> MidpointActor:
        return MidpointActor(
            **self.net_arguments(),
            chunk_dim=self.chunk_dim,
            net_arch=self.arch("pi", [512, 512]),
            flow_steps=self.flow_steps,
        ).to(self.device)

    def _make_behavior_value(self) -> BehaviorValue:
        return BehaviorValue(**self.net_arguments(), net_arch=self.arch("qf", CRITIC.net_arch)).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(flow_steps=self.flow_steps)
        return data


class FlowRLCnnPolicy(ImagePolicy, FlowRLPolicy):
    """FlowRL on images, also on those that are not uint8. The parameters are those of `FlowRLPolicy`."""
