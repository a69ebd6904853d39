"""What every off-policy algorithm's policy here is: an actor and critics over action chunks, and the chunks' queue.

Shapes: B batch, h horizon length, d action dimension, D = h d.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import is_integer, require, require_choice, require_integer, require_number
from sb3_flow.common.critics import CRITIC_KINDS, CriticKind, FlowCritic
from sb3_flow.common.encoding import ObservingModel, SharedFeatures, encode_once, n_observations
from sb3_flow.common.flow import Line
from sb3_flow.common.hints import check_known
from sb3_flow.common.velocity import Flow

ChunkState = tuple[NDArray[Any], ...]


class ChunkActor(ObservingModel, BasePolicy):
    """An actor whose actions are a function of the state and of noise.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: maps observations to (B, features_dim)
    :param features_dim: width of the features
    :param chunk_dim: D, numbers in an action chunk
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        chunk_dim: int,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor, features_dim, normalize_images, squash_output=True
        )
        self.chunk_dim = chunk_dim
        self.action_fn: Callable[[PyTorchObs, th.Tensor], th.Tensor] = self.action  # the algorithm may compile it

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            features_extractor=self.features_extractor, features_dim=self.features_dim, chunk_dim=self.chunk_dim
        )
        return data

    @abstractmethod
    def action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """Actions (B, D) in [-1, 1].

        :param obs: B observations
        :param noise: of `sample_noise` or `fixed_noise`
        """

    @abstractmethod
    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        """Of the numbers that a batch of actions is made from, standard normal but for `cut_noise`."""

    def cut_noise(self, noise: th.Tensor) -> th.Tensor:
        """What standard normal numbers become before an action is made from them."""
        return noise

    def sample_noise(self, batch_size: int) -> th.Tensor:
        """All the noise of one batch of actions, in one draw."""
        return self.cut_noise(th.randn(self.noise_shape(batch_size), device=self.device))

    def fixed_noise(self, batch_size: int) -> th.Tensor:
        """The noise of the deterministic policy, without a draw: evaluation must not change the run it watches."""
        return th.zeros(self.noise_shape(batch_size), device=self.device)

    def sample_line(self, batch_size: int) -> Line:
        """Noise and times for `sb3_flow.common.flow.matching_error`."""
        x_0 = th.randn(batch_size, self.chunk_dim, device=self.device)
        return Line(x_0, th.rand(batch_size, 1, device=self.device))

    def flow(self) -> Flow | None:
        """The nets of a flow that another policy may start from; None if there is none."""
        return None

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        batch_size = n_observations(obs)
        noise = self.fixed_noise(batch_size) if deterministic else self.sample_noise(batch_size)
        return self.action_fn(obs, noise)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)


class ActorPolicy(BasePolicy):
    """An actor that decides chunks of actions, and a critic of them; the subclasses say which.

    :param observation_space: observation space
    :param action_space: action space, a bounded Box
    :param net_arch: hidden widths, a list for all nets or a dict with a list for each of `nets`; None for the default
    :param horizon_length: h >= 1, actions that are decided at once and executed open loop; the algorithm sets it
    :param features_extractor_class: None for Flatten, NatureCNN or Combined, after the observation space
    :param features_extractor_kwargs: its arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer of actor and critic
    :param optimizer_kwargs: its arguments except the learning rate
    :raises ValueError: for values outside of what is stated here
    """

    nets: ClassVar[tuple[str, ...]] = ("pi", "qf")  # keys of net_arch
    adam_beta1: float = 0.9  # of Adam and AdamW, unless optimizer_kwargs say otherwise
    action_space: spaces.Box
    actor: ChunkActor
    critic: BaseModel

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_known(cls, kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        *,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        horizon_length: int = 1,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        require_integer("horizon_length", horizon_length)
        if optimizer_class in (th.optim.Adam, th.optim.AdamW):
            # One kernel for all parameters instead of a dozen for each
            given = optimizer_kwargs or {}
            optimizer_kwargs = {"betas": (self.adam_beta1, 0.999), "fused": not given.get("foreach"), **given}
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

    def arch(self, net: str, default: list[int]) -> list[int]:
        """Hidden widths of one of `nets`: the user's, or the default."""
        require(
            net in self.nets, "net", net, f"{type(self).__name__}.nets has the keys of net_arch, {self.nets}; add it"
        )
        if self.net_arch is None:
            return default
        if isinstance(self.net_arch, dict):
            known = set(self.net_arch) <= set(self.nets)
            keys = " and ".join(map(repr, self.nets))
            require(known, "net_arch", self.net_arch, f"a list, or a dict with keys {keys}")
        widths = self.net_arch.get(net, default) if isinstance(self.net_arch, dict) else self.net_arch
        listed = isinstance(widths, Sequence) and all(map(is_integer, widths))
        require(listed, "net_arch", self.net_arch, "a list with an integer >= 1 for every layer")
        require(net != "pi" or len(widths) > 0, "net_arch", self.net_arch, "the actor needs at least one hidden layer")
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

    def net_arguments(self) -> dict[str, Any]:
        """What a net that takes observations is made with; its features extractor is of its own, or the critics'."""
        extractor = self.make_features_extractor()
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "features_extractor": extractor,
            "features_dim": extractor.features_dim,
            "normalize_images": self.normalize_images,
        }

    def _make_optimizer(self, net: BaseModel, lr_schedule: Schedule) -> th.optim.Optimizer:
        return self.optimizer_class(net.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,
            net_arch=self.net_arch,
            horizon_length=self.horizon_length,
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
        state: ChunkState | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], ChunkState | None]:
        """The next action of every environment, and with chunks the queue of those decided but not executed yet.

        :param observation: one observation, or one for each of n environments
        :param state: what the last call returned; None, or one of another number of environments, to decide anew
        :param episode_start: (n,) whether an episode has just begun, which empties the environment's queue
        :param deterministic: without noise
        :return: actions, and the state: the chunks (n, h, action shape) and how many of each are executed (n,)
        """
        if self.horizon_length == 1:
            return super().predict(observation, state, episode_start, deterministic)
        is_reset = isinstance(observation, tuple)
        require(not is_reset, "observation", observation, "pass the first of the two that `env.reset()` returns")
        obs, vectorized = self.obs_to_tensor(observation)
        shape = (n_observations(obs), self.horizon_length, *self.action_space.shape)
        if state is None or state[0].shape != shape:
            state = np.zeros(shape, self.action_space.dtype), np.full(shape[0], self.horizon_length)
        chunks, executed = state[0].copy(), state[1].copy()
        used_up = executed == self.horizon_length
        if episode_start is not None:
            fits = np.shape(episode_start) == used_up.shape
            require(fits, "episode_start", episode_start, f"one for each of {shape[0]} environments")
            used_up |= np.asarray(episode_start, dtype=bool)
        if used_up.any():
            self.set_training_mode(False)
            with th.no_grad():
                decided = self._predict(obs, deterministic).cpu().numpy().reshape(shape)
            chunks[used_up] = self.unscale_action(decided)[used_up]
            executed[used_up] = 0
        actions = chunks[np.arange(shape[0]), executed]
        return actions if vectorized else actions[0], (chunks, executed + 1)

    def unscale_action(self, scaled_action: NDArray[Any]) -> NDArray[Any]:
        """From [-1, 1] to the action space, in its dtype.

        :param scaled_action: (..., action shape)
        :return: within the bounds, which rounding would else leave
        """
        actions = super().unscale_action(scaled_action)
        space = self.action_space
        bounded: NDArray[Any] = np.clip(actions, space.low, space.high).astype(space.dtype, copy=False)
        return bounded

    def set_training_mode(self, mode: bool) -> None:
        """Training or evaluation mode of all nets but those named `..._target`, whose own never changes."""
        for name, net in self.named_children():
            if isinstance(net, BaseModel) and not name.endswith("_target"):
                net.set_training_mode(mode)
        self.training = mode


class ChunkPolicy(ActorPolicy):
    """An actor and critics of its actions; the subclasses say which.

    :param lr_schedule: learning rate schedule; the algorithm sets the optimizers' rates at every update
    :param n_critics: number of critics
    :param critic_pessimism: rho >= 0, their verdict is mean - rho std; None for the verdict of the kind of critic
    :param share_features_extractor: whether there is one for all nets, trained by the critics' loss; else each net has
        its own
    :raises ValueError: for values outside of what is stated here

    The other parameters are those of `ActorPolicy`.
    """

    critic_kind: CriticKind = CRITIC_KINDS["target"]
    critic: FlowCritic
    critic_target: FlowCritic | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        n_critics: int = 2,
        critic_pessimism: float | None = None,
        share_features_extractor: bool = False,
        **kwargs: Any,
    ):
        require_choice("share_features_extractor", share_features_extractor, (False, True))
        require_integer("n_critics", n_critics)
        if critic_pessimism is not None:
            allowed = "a number >= 0, or None for the lowest or the mean, as the kind of critic has it"
            require_number("critic_pessimism", critic_pessimism, 0, math.inf, allowed)
        super().__init__(observation_space, action_space, **kwargs)
        self.n_critics = n_critics
        self.critic_pessimism = critic_pessimism
        self.share_features_extractor = share_features_extractor
        self._build(lr_schedule)

    @abstractmethod
    def _make_actor(self) -> ChunkActor:
        """The actor, on the device."""

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The features extractor of a net that is not the critics': its own, or theirs."""
        if self.share_features_extractor:
            return SharedFeatures(self.critic.features_extractor)
        return super().make_features_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        if self.share_features_extractor:
            self.critic = self._make_critic(super().make_features_extractor())
            self.actor = self._make_actor()
        else:
            self.actor = self._make_actor()
            self.critic = self._make_critic(super().make_features_extractor())
        self.critic_target = None
        if self.critic_kind.has_target:
            self.critic_target = self._make_target(self.critic)
        for net in (self.actor, self.critic):
            net.optimizer = self._make_optimizer(net, lr_schedule)

    def _make_critic(self, extractor: BaseFeaturesExtractor) -> FlowCritic:
        return FlowCritic(
            self.observation_space,
            self.action_space,
            extractor,
            extractor.features_dim,
            self.chunk_dim,
            self.critic_kind,
            self.arch("qf", self.critic_kind.net_arch),
            self.n_critics,
            self.critic_pessimism,
            self.normalize_images,
        ).to(self.device)

    def _make_target(self, critic: FlowCritic) -> FlowCritic:
        """A copy of a critic for the Polyak average of its weights."""
        # One that is trained is averaged, too
        reads = isinstance(critic.features_extractor, SharedFeatures)
        target = self._make_critic(self.make_features_extractor() if reads else super().make_features_extractor())
        target.load_state_dict(critic.state_dict())
        target.requires_grad_(False)
        # What goes through the net together is normalised together
        target.set_training_mode(self.critic_kind.joint)
        return target

    def encoded(self, batch: Batch) -> Batch:
        """A batch whose observations are encoded once for all nets of a loss, if they share the extractor."""
        return encode_once(batch, self.critic) if self.share_features_extractor else batch

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            n_critics=self.n_critics,
            critic_pessimism=self.critic_pessimism,
            share_features_extractor=self.share_features_extractor,
        )
        return data


class ImagePolicy(ActorPolicy):
    """Mixed in before a policy: NatureCNN by default, also for images that are not uint8."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] | None = NatureCNN, **kwargs: Any
    ):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


def default_features_extractor(observation_space: spaces.Space[Any]) -> type[BaseFeaturesExtractor]:
    """SB3's extractor for an observation space: Combined for Dict, NatureCNN for images, Flatten for the rest."""
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(observation_space) else FlattenExtractor
