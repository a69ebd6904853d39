"""FQL's policies: a behaviour flow with a one-step policy beside it, or with the best of n of its samples.

Shapes: B batch, n candidates, D numbers in an action chunk.
"""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_flow.common.checks import require_integer
from sb3_flow.common.critics import CriticKind, FlowCritic
from sb3_flow.common.flow import VelocityFn, integrate
from sb3_flow.common.policies import ChunkActor, ChunkPolicy, ImagePolicy
from sb3_flow.common.velocity import Flow
from sb3_flow.fql.networks import BehaviorFlow, actor_mlp, critic_mlp

CRITIC = CriticKind(critic_mlp, [512, 512, 512, 512], has_target=True, verdict="mean")


class FQLActor(ChunkActor):
    """A flow that clones the data, beside what acts.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: of the behaviour flow, maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param net_arch: hidden widths
    :param flow_steps: Euler steps of the behaviour flow
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
        self.behavior = BehaviorFlow(features_dim, chunk_dim, net_arch)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(net_arch=self.net_arch, flow_steps=self.flow_steps)
        return data

    def field(self, obs: PyTorchObs) -> VelocityFn:
        """The behaviour flow's velocity in B states, which are encoded once: `(x, t) -> Velocity`."""
        context = self.behavior.encode(self.extract_features(obs, self.features_extractor))
        return lambda x, t: self.behavior(context, x, t)

    def flow(self) -> Flow:
        return Flow(self.features_extractor, nn.Identity(), self.behavior, squash=False, sde=False)

    def flow_actions(self, velocity: VelocityFn, noise: th.Tensor) -> th.Tensor:
        """The behaviour flow's actions in [-1, 1] in the states of a `field`, (B, D) or (n, B, D) as the noise is."""
        return integrate(velocity, noise, self.flow_steps).clamp(-1, 1)


class OneStepActor(FQLActor):
    """A one-step policy mu(s, z), which is distilled from the behaviour flow and acts.

    :param one_step_extractor: its own features extractor

    The other parameters are those of `FQLActor`. The deterministic policy has z = 0.
    """

    def __init__(self, *args: Any, one_step_extractor: BaseFeaturesExtractor, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.one_step_extractor = one_step_extractor
        self.one_step = actor_mlp(self.features_dim + self.chunk_dim, self.net_arch, self.chunk_dim)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(one_step_extractor=self.one_step_extractor)
        return data

    def mu(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """The one-step policy's output (B, D), not clipped; noise (B, D)."""
        features = self.extract_features(obs, self.one_step_extractor)
        out: th.Tensor = self.one_step(th.cat([features, noise], dim=1)).to(noise.dtype)
        return out

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return self.mu(obs, noise).clamp(-1, 1)

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return batch_size, self.chunk_dim


class BestOfNActor(FQLActor):
    """Acts by the one of n samples of the behaviour flow that the critics prefer.

    :param best_of_n: n

    The other parameters are those of `FQLActor`. The deterministic policy draws its n samples from the same noise in
    every state.
    """

    candidates: th.Tensor

    def __init__(self, *args: Any, best_of_n: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.best_of_n = best_of_n
        self._judge: tuple[FlowCritic, ...] = ()  # in a tuple, or its parameters would be the actor's, too
        generator = th.Generator().manual_seed(0)
        candidates = th.randn(best_of_n, 1, self.chunk_dim, generator=generator)
        self.register_buffer("candidates", candidates, persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(best_of_n=self.best_of_n)
        return data

    def judged_by(self, critic: FlowCritic) -> None:
        """Say whose verdict the samples are chosen by."""
        self._judge = (critic,)

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        if not self._judge:
            raise ValueError("This actor has no critics to choose by: load the policy, or the model, as a whole")
        (critic,) = self._judge
        candidates = self.flow_actions(self.field(obs), noise)  # (n, B, D)
        features = critic.extract_features(obs, critic.features_extractor)
        n, batch_size, _ = candidates.shape
        q = critic.judge(features.repeat(n, 1), candidates.flatten(0, 1))  # (N, n B)
        best = critic.reduce(q).view(n, batch_size).argmax(dim=0)  # (B,)
        return candidates[best, th.arange(batch_size, device=best.device)]

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return self.best_of_n, batch_size, self.chunk_dim

    def fixed_noise(self, batch_size: int) -> th.Tensor:
        return self.candidates.expand(-1, batch_size, -1)


class FQLPolicy(ChunkPolicy):
    """Actor and critics of FQL.

    :param net_arch: hidden widths, a list for all nets or `dict(pi=..., qf=...)`; None for the paper's 4 x 512
    :param best_of_n: n >= 1 samples of the behaviour flow to choose from; None for a one-step policy; FQL sets it
    :param flow_steps: K >= 1, Euler steps of the behaviour flow
    :param critic_pessimism: rho >= 0, their verdict is mean - rho std; None for the mean
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ChunkPolicy`.
    """

    critic_kind = CRITIC
    actor: OneStepActor | BestOfNActor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        best_of_n: int | None = None,
        flow_steps: int = 10,
        **kwargs: Any,
    ):
        require_integer("flow_steps", flow_steps)
        if best_of_n is not None:
            require_integer("best_of_n", best_of_n)
        # Before super().__init__(), which builds the nets
        self.flow_steps = flow_steps
        self.best_of_n = best_of_n
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if isinstance(self.actor, BestOfNActor):
            self.actor.judged_by(self.critic)

    def _make_actor(self) -> OneStepActor | BestOfNActor:
        arguments = {
            **self.net_arguments(),
            "chunk_dim": self.chunk_dim,
            "net_arch": self.arch("pi", [512, 512, 512, 512]),
            "flow_steps": self.flow_steps,
        }
        if self.best_of_n is not None:
            return BestOfNActor(best_of_n=self.best_of_n, **arguments).to(self.device)
        return OneStepActor(one_step_extractor=self.make_features_extractor(), **arguments).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(best_of_n=self.best_of_n, flow_steps=self.flow_steps)
        return data


class FQLCnnPolicy(ImagePolicy, FQLPolicy):
    """FQL on images, also on those that are not uint8. The parameters are those of `FQLPolicy`."""
