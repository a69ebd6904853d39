"""Flow policies: an actor that integrates a velocity net, and the critics that judge it."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_flow.checks import is_integer, require, require_choice, require_integer, require_number
from sb3_flow.flow import LIKELIHOODS, ROLLOUT_KINDS, Likelihood, Line, Path, RolloutKind, Velocity, VelocityFn, rollout
from sb3_flow.layers import BatchRenorm, ensemble_mlp
from sb3_flow.velocity import DecoderVelocity, GatedVelocity, MLPVelocity, VelocityNet


class CriticKind(NamedTuple):
    """Everything that comes with the choice of a critic."""

    norm: Literal["batch_renorm", "layer"]
    net_arch: list[int]
    has_target: bool  # a Polyak-averaged copy; without one, s and s' go through the net together
    learning_rate: float
    adam_beta1: float
    policy_delay: int
    d_model: int  # token width of Flow-T


CRITIC_KINDS = {
    # From scratch: CrossQ's critic (SAC Flow, Table 3: tau 1, beta_1 0.5)
    "crossq": CriticKind("batch_renorm", [1024, 1024], False, 1e-3, 0.5, 3, 64),
    # Offline-to-online: Q-chunking's critic
    "target": CriticKind("layer", [512, 512, 512, 512], True, 3e-4, 0.9, 1, 128),
}

# Highest sigma each rollout stands at few steps: docs/algorithm.md, "Bounds of the noise"
LOG_STD_RANGES: dict[str, tuple[float, float]] = {"sde": (-5.0, 0.5 * math.log(2)), "noise": (-5.0, 2.0)}


class FlowActor(BasePolicy):
    """A K-step flow policy: encodes the state once, then integrates the velocity net.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param velocity: the velocity net
    :param chunk_dim: D, numbers in an action chunk
    :param flow_steps: K
    :param rollout_kind: "sde" or "noise", see `sb3_flow.flow.rollout`
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
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.features_dim = features_dim
        self.norm = BatchRenorm(features_dim)
        self.velocity = velocity
        self.flow_steps = flow_steps
        self.rollout_kind: RolloutKind = rollout_kind
        self.likelihood: Likelihood = likelihood
        self.chunk_dim = chunk_dim
        self.action_fn: Callable[[PyTorchObs, th.Tensor], th.Tensor] = self.action  # SACFlow may compile it

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            features_extractor=self.features_extractor,
            features_dim=self.features_dim,
            velocity=self.velocity,
            chunk_dim=self.chunk_dim,
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

    def sample_line(self, batch_size: int) -> Line:
        """Noise and times for `sb3_flow.flow.matching_error`."""
        x_0 = th.randn(batch_size, self.chunk_dim, device=self.device)
        return Line(x_0, th.rand(batch_size, 1, device=self.device))

    def sample_noise(self, batch_size: int) -> th.Tensor:
        """All the noise of one rollout, (K + 1, B, D), in one draw."""
        return th.randn(self.flow_steps + 1, batch_size, self.chunk_dim, device=self.device)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Sampled actions (B, D) in [-1, 1] and their log-densities (B,), under the name SAC's actor has."""
        path = self.path(obs, self.sample_noise(_batch_size(obs)))
        return th.tanh(path.x), path.log_prob

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        batch_size = _batch_size(obs)
        if deterministic:
            # Without a draw, as in SB3: evaluation must not change the run it watches
            noise = th.zeros(self.flow_steps + 1, batch_size, self.chunk_dim, device=self.device)
        else:
            noise = self.sample_noise(batch_size)
        return self.action_fn(obs, noise)

    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """Actions (B, D) in [-1, 1] at the ends of paths. The parameters are those of `path`."""
        return th.tanh(self.path(obs, noise).x)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)


class FlowCritic(BaseModel):
    """N action-value networks, batched into one.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param kind: one of `CRITIC_KINDS`
    :param net_arch: hidden widths
    :param n_critics: N
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        chunk_dim: int,
        kind: CriticKind,
        net_arch: list[int],
        n_critics: int,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.features_extractor: BaseFeaturesExtractor = features_extractor
        self.kind = kind
        self.n_critics = n_critics
        self.q_networks = ensemble_mlp(n_critics, features_dim + chunk_dim, net_arch, kind.norm)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Q of every critic, (N, B).

        :param obs: B observations
        :param actions: (B, D) in [-1, 1]
        """
        x = th.cat([self.extract_features(obs, self.features_extractor), actions], dim=1)
        q: th.Tensor = self.q_networks(x.expand(self.n_critics, *x.shape)).squeeze(2)
        return q.to(actions.dtype)

    def reduce(self, q: th.Tensor) -> th.Tensor:
        """One verdict of N critics: the lowest, or the mean of those with a target network. (N, B) -> (B,)."""
        return q.mean(dim=0) if self.kind.has_target else q.amin(dim=0)


class FlowPolicy(BasePolicy):
    """Actor and critics of SAC Flow; the subclasses choose the velocity net.

    :param observation_space: observation space
    :param action_space: action space, a bounded Box
    :param lr_schedule: learning rate schedule; SACFlow sets the optimizers' rates at every update
    :param net_arch: hidden widths, a list for all nets or `dict(pi=..., qf=...)`; None for the paper's
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop; SACFlow sets it
    :param flow_steps: K >= 1, Euler steps of the rollout
    :param rollout: "sde" (paper, Eq. 13) or "noise" (the authors' code: no drift correction)
    :param likelihood: whose entropy is regularised: "path" (paper, Eq. 15), or "action", which is less than that of the
        action itself and more than nothing when the path's noise cancels (docs/algorithm.md)
    :param noise_std: fixed sigma > 0 of the rollout's noise; None for a learned log-std head
    :param log_std_range: lowest and highest learned log-std; None for (-5, log(2) / 2) with "sde", (-5, 2) with
        "noise"
    :param critic: "crossq" (from scratch) or "target" (offline-to-online)
    :param n_critics: number of critics
    :param features_extractor_class: None for Flatten, NatureCNN or Combined, after the observation space
    :param features_extractor_kwargs: its arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer of actor and critics
    :param optimizer_kwargs: its arguments except the learning rate
    :raises ValueError: for values outside of what is stated here
    """

    action_space: spaces.Box
    actor: FlowActor
    critic: FlowCritic
    critic_target: FlowCritic | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        horizon_length: int = 1,
        flow_steps: int = 4,
        rollout: RolloutKind = "sde",
        likelihood: Likelihood = "action",
        noise_std: float | None = None,
        log_std_range: tuple[float, float] | None = None,
        critic: str = "crossq",
        n_critics: int = 2,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        for name, value in {"horizon_length": horizon_length, "flow_steps": flow_steps, "n_critics": n_critics}.items():
            require_integer(name, value)
        require_choice("rollout", rollout, ROLLOUT_KINDS)
        require_choice("likelihood", likelihood, LIKELIHOODS)
        require_choice("critic", critic, tuple(CRITIC_KINDS))
        if noise_std is not None:
            require_number("noise_std", noise_std, math.ulp(0.0), math.inf, "a number > 0, or None to learn it")
        log_std_range = LOG_STD_RANGES[rollout] if log_std_range is None else log_std_range
        require(_is_range(log_std_range), "log_std_range", log_std_range, "(lowest, highest), two finite numbers")

        kind = CRITIC_KINDS[critic]
        if optimizer_class in (th.optim.Adam, th.optim.AdamW):
            # One kernel for all parameters instead of a dozen for each
            given = optimizer_kwargs or {}
            optimizer_kwargs = {"betas": (kind.adam_beta1, 0.999), "fused": not given.get("foreach"), **given}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or default_features_extractor(observation_space),
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.net_arch = net_arch
        self.horizon_length = horizon_length
        self.chunk_dim = horizon_length * get_action_dim(action_space)
        self.flow_steps = flow_steps
        self.rollout: RolloutKind = rollout
        self.likelihood: Likelihood = likelihood
        self.noise_std = noise_std
        self.log_std_range = (float(log_std_range[0]), float(log_std_range[1]))
        self.critic_name = critic
        self.critic_kind = kind
        self.n_critics = n_critics
        self._build(lr_schedule)

    def make_velocity(self, features_dim: int) -> VelocityNet:
        """The velocity net of this policy.

        :param features_dim: width of the state features
        """
        raise NotImplementedError

    def arch(self, net: Literal["pi", "qf"], default: list[int]) -> list[int]:
        """Hidden widths of a net: the user's, or the default."""
        if self.net_arch is None:
            return default
        if isinstance(self.net_arch, dict):
            known = set(self.net_arch) <= {"pi", "qf"}
            require(known, "net_arch", self.net_arch, "a list, or a dict with keys 'pi' and 'qf'")
        widths = self.net_arch.get(net, default) if isinstance(self.net_arch, dict) else self.net_arch
        listed = isinstance(widths, Sequence) and all(map(is_integer, widths))
        require(listed, "net_arch", self.net_arch, "a list with an integer >= 1 for every layer")
        require(net == "qf" or len(widths) > 0, "net_arch", self.net_arch, "the actor needs at least one hidden layer")
        return list(widths)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        try:
            return super().make_features_extractor()
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f"observation_space={self.observation_space} cannot be encoded by "
                f"{self.features_extractor_class.__name__}: {error}. Choose another one with "
                "policy_kwargs={'features_extractor_class': ...} (NatureCNN needs images of at least 36 x 36, uint8 "
                "if they are to be divided by 255)."
            ) from error

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self._make_actor()
        self.critic = self._make_critic()
        self.critic_target = None
        if self.critic_kind.has_target:
            self.critic_target = self._make_critic()
            self.critic_target.load_state_dict(self.critic.state_dict())
            self.critic_target.requires_grad_(False)
            self.critic_target.set_training_mode(False)
        for net in (self.actor, self.critic):
            net.optimizer = self.optimizer_class(
                net.parameters(),
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def _make_actor(self) -> FlowActor:
        extractor = self.make_features_extractor()
        velocity = self.make_velocity(extractor.features_dim)
        return FlowActor(
            self.observation_space,
            self.action_space,
            extractor,
            extractor.features_dim,
            velocity,
            self.chunk_dim,
            self.flow_steps,
            self.rollout,
            self.likelihood,
            self.normalize_images,
        ).to(self.device)

    def _make_critic(self) -> FlowCritic:
        extractor = self.make_features_extractor()
        return FlowCritic(
            self.observation_space,
            self.action_space,
            extractor,
            extractor.features_dim,
            self.chunk_dim,
            self.critic_kind,
            self.arch("qf", self.critic_kind.net_arch),
            self.n_critics,
            self.normalize_images,
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,
            net_arch=self.net_arch,
            horizon_length=self.horizon_length,
            flow_steps=self.flow_steps,
            rollout=self.rollout,
            likelihood=self.likelihood,
            noise_std=self.noise_std,
            log_std_range=self.log_std_range,
            critic=self.critic_name,
            n_critics=self.n_critics,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor._predict(observation, deterministic)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """The next action of every environment, and with chunks the queue of those decided but not executed yet.

        :param observation: one observation, or one for each of n environments
        :param state: what the last call returned; None, or one of another number of environments, to decide anew
        :param episode_start: (n,) whether an episode has just begun, which empties the environment's queue
        :param deterministic: without noise
        :return: actions, and the state: the chunks (n, h, *action shape) and how many of each are executed (n,)
        """
        if self.horizon_length == 1:
            return super().predict(observation, state, episode_start, deterministic)
        is_reset = isinstance(observation, tuple)
        require(not is_reset, "observation", observation, "pass the first of the two that `env.reset()` returns")
        obs, vectorized = self.obs_to_tensor(observation)
        shape = (_batch_size(obs), self.horizon_length, *self.action_space.shape)
        if state is None or state[0].shape != shape:
            state = np.zeros(shape, self.action_space.dtype), np.full(shape[0], self.horizon_length)
        chunks, executed = state[0].copy(), state[1].copy()
        used_up = executed == self.horizon_length
        if episode_start is not None:
            used_up |= np.asarray(episode_start, dtype=bool)
        if used_up.any():
            self.set_training_mode(False)
            with th.no_grad():
                decided = self._predict(obs, deterministic).cpu().numpy().reshape(shape)
            chunks[used_up] = self.unscale_action(decided)[used_up]
            executed[used_up] = 0
        actions = chunks[np.arange(shape[0]), executed]
        return actions if vectorized else actions[0], (chunks, executed + 1)

    def set_training_mode(self, mode: bool) -> None:
        """Training or evaluation mode of actor and critic; a target critic is always in evaluation mode."""
        for net in (self.actor, self.critic):
            if net.training != mode:  # every decision asks, and the walk through the modules was a quarter of it
                net.set_training_mode(mode)
        self.training = mode


class FlowTPolicy(FlowPolicy):
    """Flow-T: the velocity is a Transformer decoder.

    :param d_model: token width; None for 64 with "crossq" critics, 128 with "target"
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
        self.d_model = CRITIC_KINDS[critic].d_model if d_model is None else d_model
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


class FlowTCnnPolicy(FlowTPolicy):
    """Flow-T on images, also on those that are not uint8. The parameters are those of `FlowTPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] | None = NatureCNN,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


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


def default_features_extractor(observation_space: spaces.Space[Any]) -> type[BaseFeaturesExtractor]:
    """SB3's extractor for an observation space: Combined for Dict, NatureCNN for images, Flatten for the rest."""
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(observation_space) else FlattenExtractor


def _is_range(value: Any) -> bool:
    """Whether these are two finite numbers, the lower one first."""
    two = isinstance(value, Sequence) and len(value) == 2
    return two and all(isinstance(number, Real) and math.isfinite(number) for number in value) and value[0] < value[1]


def _batch_size(obs: PyTorchObs) -> int:
    return next(iter(obs.values())).shape[0] if isinstance(obs, dict) else obs.shape[0]
