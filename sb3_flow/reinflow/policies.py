"""ReinFlow's policy: a flow with noise in its steps, and a value net.

Shapes: B batch, D numbers in an action chunk, K flow steps.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from numbers import Real
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_flow.common.checks import require, require_integer
from sb3_flow.common.flow import MatchingTarget, VelocityFn, bound_log_std, drift
from sb3_flow.common.policies import ActorPolicy, ChunkActor, ImagePolicy
from sb3_flow.common.velocity import Flow
from sb3_flow.reinflow.chain import HIGHEST_NOISE, Score, Transition, TransitionFn, sample, score
from sb3_flow.reinflow.networks import NoiseNet, ResidualVelocity, ValueNet

NOISE_ARCH = [64, 64]


class ReinFlowActor(ChunkActor):
    """A flow whose Euler steps a second net makes noisy, which is a Markov chain with a density.

    :param observation_space: observation space
    :param action_space: action space
    :param flow: its nets
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param flow_steps: K
    :param noise_std_range: lowest and highest sigma
    :param normalize_images: divide images by 255
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        flow: Flow,
        features_dim: int,
        chunk_dim: int,
        flow_steps: int,
        noise_std_range: tuple[float, float],
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space, action_space, flow.features_extractor, features_dim, chunk_dim, normalize_images
        )
        self.norm = flow.norm
        self.velocity = flow.velocity
        self.squash = flow.squash
        self.sde = flow.sde
        self.flow_steps = flow_steps
        self.noise_std_range = noise_std_range
        self.noise_net = NoiseNet(features_dim, chunk_dim, NOISE_ARCH)
        # Bounds of log sigma as they are now; saved, for they move in the course of training
        for name, std in zip(("low", "high"), noise_std_range, strict=True):
            self.register_buffer(name, th.tensor(math.log(std)))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["features_extractor"]
        data.update(flow=self.flow(), flow_steps=self.flow_steps, noise_std_range=self.noise_std_range)
        return data

    @property
    def matching_target(self) -> MatchingTarget:
        """What the flow's paths lead to where it clones actions."""
        return "atanh" if self.squash else "raw"

    def flow(self) -> Flow:
        return Flow(self.features_extractor, self.norm, self.velocity, self.squash, self.sde)

    def bound_noise(self, highest_std: float) -> None:
        """Set the upper bound of sigma."""
        self.high.fill_(math.log(highest_std))

    def field(self, obs: PyTorchObs) -> VelocityFn:
        """The velocity net in B states, which are encoded once: `(x, t) -> Velocity`."""
        context = self.velocity.encode(self._features(obs))
        return lambda x, t: self.velocity(context, x, t)

    def transitions(self, obs: PyTorchObs) -> TransitionFn:
        """The chain in B states, which are encoded once: `(i, x) -> Transition`."""
        features = self._features(obs)
        context = self.velocity.encode(features)

        def transition(i: int, x: th.Tensor) -> Transition:
            t = x.new_full((1, 1), i / self.flow_steps)
            v, log_std = self.velocity(context, x, t)
            mean = x + (drift(x, v, t, log_std.exp()) if self.sde else v) / self.flow_steps
            if not self.squash:
                mean = mean.clamp(-1, 1)
            return Transition(mean, bound_log_std(self.noise_net(features, t), self.low, self.high))

        return transition

    def path(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """Points of a path, (K + 1, B, D), the last of which is an action before `ends`.

        :param obs: B observations
        :param noise: (K + 1, B, D) of `sample_noise` or `fixed_noise`
        """
        return sample(self.transitions(obs), noise)

    def score(self, obs: PyTorchObs, points: th.Tensor) -> Score:
        """What the policy of now says of paths, whoever took them.

        :param obs: B observations
        :param points: (K + 1, B, D)
        """
        return score(self.transitions(obs), points)

    def ends(self, x: th.Tensor) -> th.Tensor:
        """Actions in [-1, 1] where paths end at x."""
        return th.tanh(x) if self.squash else x.clamp(-1, 1)

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return self.ends(self.path(obs, noise)[-1])

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return self.flow_steps + 1, batch_size, self.chunk_dim

    def cut_noise(self, noise: th.Tensor) -> th.Tensor:
        return th.cat([noise[:1], noise[1:].clamp(-HIGHEST_NOISE, HIGHEST_NOISE)])

    def _features(self, obs: PyTorchObs) -> th.Tensor:
        features: th.Tensor = self.norm(self.extract_features(obs, self.features_extractor))
        return features


class ReinFlowPolicy(ActorPolicy):
    """Actor and value net of ReinFlow.

    :param lr_schedule: learning rate schedule; ReinFlow sets the optimizers' rates at every update
    :param net_arch: hidden widths, a list for both nets or `dict(pi=..., vf=...)`, see
        `sb3_flow.reinflow.networks.check_residual`; None for the paper's, 3 x 512 and 3 x 256
    :param flow_steps: K >= 1, Euler steps of the flow
    :param noise_std_range: lowest and highest sigma of the noise in a step, 0 < lowest < highest
    :param flow: nets to begin with, which are copied, and of which net_arch is not the actor's; None for new ones.
        `ReinFlow.start_from` sets it
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ActorPolicy`.
    """

    nets: ClassVar[tuple[str, ...]] = ("pi", "vf")
    actor: ReinFlowActor
    critic: ValueNet

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        flow_steps: int = 4,
        noise_std_range: tuple[float, float] = (0.1, 0.24),
        flow: Flow | None = None,
        **kwargs: Any,
    ):
        require_integer("flow_steps", flow_steps)
        super().__init__(observation_space, action_space, **kwargs)
        self.flow_steps = flow_steps
        self.noise_std_range = check_noise(noise_std_range)
        self.flow = flow
        self.actor = self._make_actor()
        self.critic = self._make_critic()
        for net in (self.actor, self.critic):
            net.optimizer = self._make_optimizer(net, lr_schedule)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """V of B observations, (B, 1), as SB3's on-policy policies have it."""
        return self.critic(obs).unsqueeze(1)  # type: ignore[no-any-return]

    def _make_actor(self) -> ReinFlowActor:
        flow = self._new_flow() if self.flow is None else deepcopy(self.flow)
        return ReinFlowActor(
            self.observation_space,
            self.action_space,
            flow,
            flow.features_extractor.features_dim,
            self.chunk_dim,
            self.flow_steps,
            self.noise_std_range,
            self.normalize_images,
        ).to(self.device)

    def _new_flow(self) -> Flow:
        extractor = self.make_features_extractor()
        velocity = ResidualVelocity(extractor.features_dim, self.chunk_dim, self.arch("pi", [512, 512, 512]))
        return Flow(extractor, nn.Identity(), velocity, squash=False, sde=False)

    def _make_critic(self) -> ValueNet:
        return ValueNet(**self.net_arguments(), net_arch=self.arch("vf", [256, 256, 256])).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(flow_steps=self.flow_steps, noise_std_range=self.noise_std_range, flow=self.flow)
        return data


class ReinFlowCnnPolicy(ImagePolicy, ReinFlowPolicy):
    """ReinFlow on images, also on those that are not uint8. The parameters are those of `ReinFlowPolicy`."""


def check_noise(noise_std_range: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest sigma.

    :raises ValueError: if they are no two numbers 0 < lowest < highest
    """
    numbers = isinstance(noise_std_range, Sequence) and all(isinstance(std, Real) for std in noise_std_range)
    ordered = numbers and len(noise_std_range) == 2 and 0 < noise_std_range[0] < noise_std_range[1] < math.inf
    require(ordered, "noise_std_range", noise_std_range, "two numbers, 0 < lowest < highest")
    low, high = noise_std_range
    return float(low), float(high)
