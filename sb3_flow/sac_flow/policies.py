"""SAC Flow's policies: an actor that integrates a velocity net through K noisy steps."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import LinearSchedule

from sb3_flow.common.batch_renorm import BatchRenorm
from sb3_flow.common.checks import require, require_choice, require_integer, require_number
from sb3_flow.common.critics import CRITIC_KINDS
from sb3_flow.common.encoding import n_observations
from sb3_flow.common.flow import (
    LIKELIHOODS,
    ROLLOUT_KINDS,
    Likelihood,
    Path,
    RolloutKind,
    Velocity,
    VelocityFn,
    integrate,
    rollout,
)
from sb3_flow.common.policies import ChunkActor, ChunkPolicy, ImagePolicy
from sb3_flow.common.velocity import DecoderVelocity, Flow, GatedVelocity, MLPVelocity, VelocityNet, check_velocity


class Defaults(NamedTuple):
    """What goes with each kind of critic unless the user says otherwise."""

    qf_learning_rate: float | Schedule
    adam_beta1: float
    policy_delay: int
    d_model: int  # token width of Flow-T
    ent_coef: str


DEFAULTS = {
    # From scratch (SAC Flow, Table 3: beta_1 0.5); the delay is CrossQ's
    "crossq": Defaults(1e-3, 0.5, 3, 64, "auto_0.2"),
    # Alpha is that of scaled rewards (XQC, SimbaV2, FlashSAC)
    "categorical": Defaults(1e-3, 0.5, 3, 64, "auto_0.01"),
    "xqc": Defaults(LinearSchedule(3e-4, 3e-5, 1.0), 0.9, 3, 64, "auto_0.01"),
    "flashsac": Defaults(LinearSchedule(3e-4, 1.5e-4, 1.0), 0.9, 2, 64, "auto_0.01"),
    # Offline-to-online
    "target": Defaults(3e-4, 0.9, 1, 128, "auto_0.2"),
}

# Highest sigma each rollout stands at few steps: docs/algorithm.md, "Bounds of the noise"
LOG_STD_RANGES: dict[str, tuple[float, float]] = {"sde": (-5.0, 0.5 * math.log(2)), "noise": (-5.0, 2.0)}


class FlowActor(ChunkActor):
    """A K-step flow policy: encodes the state once, then integrates the velocity net.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param velocity: the velocity net
    :param chunk_dim: D, numbers in an action chunk
    :param flow_steps: K
    :param rollout_kind: "sde" or "noise", see `sb3_flow.common.flow.rollout`
    :param likelihood: "action" or "path", see there
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        velocity: VelocityNet,
        chunk_dim: int,
        flow_steps: int,
        rollout_kind: RolloutKind,
        likelihood: Likelihood,
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, features_dim, chunk_dim, normalize_images)
        self.norm = BatchRenorm(features_dim)
        self.velocity = velocity
        self.flow_steps = flow_steps
        self.rollout_kind: RolloutKind = rollout_kind
        self.likelihood: Likelihood = likelihood
        self._acting_noise: th.Tensor | None = None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            velocity=self.velocity,
            flow_steps=self.flow_steps,
            rollout_kind=self.rollout_kind,
            likelihood=self.likelihood,
        )
        return data

    def path(self, obs: PyTorchObs, noise: th.Tensor) -> Path:
        """Roll the flow out.

        :param obs: B observations
        :param noise: (K + 1, B, D) standard normal, or zeros for the deterministic path
        """
        return self.path_in(self.field(obs), noise)

    def path_in(self, velocity: VelocityFn, noise: th.Tensor) -> Path:
        """Roll the flow out in the states of a `field`. The parameters are those of `path`."""
        return rollout(velocity, noise, self.rollout_kind, self.likelihood)

    def field(self, obs: PyTorchObs) -> VelocityFn:
        """The velocity net in B states, which are encoded once: `(x, t) -> Velocity`."""
        features = self.norm(self.extract_features(obs, self.features_extractor))
        context = self.velocity.encode(features)

        def velocity(x: th.Tensor, t: th.Tensor) -> Velocity:
            v, log_std = self.velocity(context, x, t)
            return Velocity(v.to(x.dtype), log_std)

        return velocity

    def flow(self) -> Flow:
        return Flow(self.features_extractor, self.norm, self.velocity, squash=True, sde=self.rollout_kind == "sde")

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        return self.flow_steps + 1, batch_size, self.chunk_dim

    @contextmanager
    def acting_with(self, noise: th.Tensor) -> Iterator[None]:
        """Let decisions be made with this noise, (K + 1, B, D), in place of a draw, unless they are deterministic."""
        self._acting_noise = noise
        try:
            yield
        finally:
            self._acting_noise = None

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self._acting_noise is None or deterministic:
            return super().forward(obs, deterministic)
        return self.action_fn(obs, self._acting_noise)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Sampled actions (B, D) in [-1, 1] and their log-densities (B,), under the name SAC's actor has."""
        path = self.path(obs, self.sample_noise(n_observations(obs)))
        return th.tanh(path.x), path.log_prob

    def without_noise(self, obs: PyTorchObs, x_0: th.Tensor) -> th.Tensor:
        """Actions (B, D) in [-1, 1] at the ends of the ODE's paths.

        :param obs: B observations
        :param x_0: (B, D) where the paths begin
        """
        return th.tanh(integrate(self.field(obs), x_0, self.flow_steps))

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """Actions (B, D) in [-1, 1] at the ends of paths. The parameters are those of `path`."""
        return th.tanh(self.path(obs, noise).x)


class FlowPolicy(ChunkPolicy):
    """Actor and critics of SAC Flow; the subclasses choose the velocity net.

    :param net_arch: hidden widths, a list for all nets or `dict(pi=..., qf=...)`; None for the paper's
    :param flow_steps: K >= 1, Euler steps of the rollout
    :param rollout: "sde" (paper, Eq. 13) or "noise" (the authors' code: no drift correction)
    :param likelihood: whose entropy is regularised: "path" (paper, Eq. 15), or "action", which is less than that of the
        action itself and more than nothing when the path's noise cancels (docs/algorithm.md)
    :param noise_std: fixed sigma > 0 of the rollout's noise; None for a learned log-std head
    :param log_std_range: lowest and highest learned log-std; None for (-5, log(2) / 2) with "sde", (-5, 2) with
        "noise"
    :param has_behavior: whether there is a second flow, which clones the replayed actions; SACFlow sets it
    :param critic: "crossq" (from scratch), "target" (offline-to-online), or with a distribution of returns
        "categorical", which is CrossQ's net, "xqc", or "flashsac", whose net has residual blocks
    :param critic_pessimism: rho >= 0, their verdict is mean - rho std; None for the mean with "target", else the lowest
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ChunkPolicy`.
    """

    actor: FlowActor
    behavior: FlowActor | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        flow_steps: int = 4,
        rollout: RolloutKind = "sde",
        likelihood: Likelihood = "action",
        noise_std: float | None = None,
        log_std_range: tuple[float, float] | None = None,
        has_behavior: bool = False,
        critic: str = "crossq",
        **kwargs: Any,
    ):
        require_integer("flow_steps", flow_steps)
        require_choice("rollout", rollout, ROLLOUT_KINDS)
        require_choice("likelihood", likelihood, LIKELIHOODS)
        require_choice("critic", critic, tuple(CRITIC_KINDS))
        if noise_std is not None:
            require_number("noise_std", noise_std, math.ulp(0.0), math.inf, "a number > 0, or None to learn it")
        log_std_range = LOG_STD_RANGES[rollout] if log_std_range is None else log_std_range
        require(_is_range(log_std_range), "log_std_range", log_std_range, "(lowest, highest), two finite numbers")
        # Before super().__init__(), which builds the nets
        self.flow_steps = flow_steps
        self.rollout: RolloutKind = rollout
        self.likelihood: Likelihood = likelihood
        self.noise_std = noise_std
        self.log_std_range = (float(log_std_range[0]), float(log_std_range[1]))
        self.has_behavior = has_behavior
        self.critic_name, self.critic_kind = critic, CRITIC_KINDS[critic]
        self.adam_beta1 = DEFAULTS[critic].adam_beta1
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @abstractmethod
    def make_velocity(self, features_dim: int) -> VelocityNet:
        """The velocity net of this policy, for actions of `self.chunk_dim` numbers.

        :param features_dim: width of the state features
        """

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.behavior = None
        if self.has_behavior:
            self.behavior = self._make_actor()
            self.behavior.optimizer = self._make_optimizer(self.behavior, lr_schedule)

    def _make_actor(self) -> FlowActor:
        arguments = self.net_arguments()
        features_dim = arguments["features_dim"]
        velocity = self.make_velocity(features_dim)
        check_velocity(velocity, features_dim, self.chunk_dim, f"{type(self).__name__}.make_velocity")
        return FlowActor(
            **arguments,
            velocity=velocity,
            chunk_dim=self.chunk_dim,
            flow_steps=self.flow_steps,
            rollout_kind=self.rollout,
            likelihood=self.likelihood,
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            flow_steps=self.flow_steps,
            rollout=self.rollout,
            likelihood=self.likelihood,
            noise_std=self.noise_std,
            log_std_range=self.log_std_range,
            has_behavior=self.has_behavior,
            critic=self.critic_name,
        )
        return data


class FlowTPolicy(FlowPolicy):
    """Flow-T: the velocity is a Transformer decoder.

    :param d_model: token width; None for 128 with "target" critics, else 64
    :param n_layers: decoder blocks
    :param n_heads: heads of the attention to the state; must divide d_model, and matter from two state tokens on
    :param state_tokens: learned tokens that the state is split into

    The other parameters are those of `FlowPolicy`; `net_arch` is the critics'.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        critic: str = "crossq",
        d_model: int | None = None,
        n_layers: int = 2,
        n_heads: int = 4,
        state_tokens: int = 1,
        **kwargs: Any,
    ):
        # Before super().__init__(), which builds the nets
        require_choice("critic", critic, tuple(CRITIC_KINDS))
        self.d_model = DEFAULTS[critic].d_model if d_model is None else d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.state_tokens = state_tokens
        for name in ("d_model", "n_layers", "n_heads", "state_tokens"):
            require_integer(name, getattr(self, name))
        require(self.d_model % 2 == 0, "d_model", d_model, "an even number")
        require(self.d_model % n_heads == 0, "n_heads", n_heads, f"it must divide d_model={self.d_model}")
        super().__init__(observation_space, action_space, lr_schedule, critic=critic, **kwargs)

    def make_velocity(self, features_dim: int) -> VelocityNet:
        require(
            not (isinstance(self.net_arch, dict) and "pi" in self.net_arch),
            "net_arch",
            self.net_arch,
            "Flow-T's actor has no 'pi' widths; use d_model and n_layers",
        )
        return DecoderVelocity(
            features_dim,
            self.chunk_dim,
            self.log_std_range,
            self.noise_std,
            self.d_model,
            self.n_layers,
            self.n_heads,
            self.state_tokens,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(d_model=self.d_model, n_layers=self.n_layers, n_heads=self.n_heads, state_tokens=self.state_tokens)
        return data


class FlowTCnnPolicy(ImagePolicy, FlowTPolicy):
    """Flow-T on images, also on those that are not uint8. The parameters are those of `FlowTPolicy`."""


class FlowGPolicy(FlowPolicy):
    """Flow-G: the velocity is gated, as in a GRU. The parameters are those of `FlowPolicy`."""

    def make_velocity(self, features_dim: int) -> VelocityNet:
        return GatedVelocity(features_dim, self.chunk_dim, self.log_std_range, self.noise_std, self.arch("pi", [128]))


class FlowMLPPolicy(FlowPolicy):
    """The naive flow policy: the velocity is a plain MLP. The parameters are those of `FlowPolicy`."""

    def make_velocity(self, features_dim: int) -> VelocityNet:
        return MLPVelocity(
            features_dim, self.chunk_dim, self.log_std_range, self.noise_std, self.arch("pi", [512, 512])
        )


def _is_range(value: Any) -> bool:
    """Whether these are two finite numbers, the lower one first."""
    two = isinstance(value, Sequence) and len(value) == 2
    return two and all(isinstance(number, Real) and math.isfinite(number) for number in value) and value[0] < value[1]
