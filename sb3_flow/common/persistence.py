"""What outlives a process: models, replay buffers and checkpoints, and going on from them."""

import inspect
import io
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_flow.common.buffers import check_buffer, end_episodes, tie
from sb3_flow.common.checkpoints import Checkpoint, Generators, newest_checkpoint, with_statistics
from sb3_flow.common.files import replacing, resolve, write_pickle
from sb3_flow.common.hints import check_known, normalizes

SelfPersistent = TypeVar("SelfPersistent", bound="PersistentAlgorithm")

NOT_YET: Any = object()  # a replay buffer that SB3 takes for one
# Which `learn` may set anew at its start
COUNTERS = ("num_timesteps", "_episode_num", "_offline_before", "_was_normalized")


class PersistentAlgorithm(BaseAlgorithm):
    """An algorithm whose files are whole or not there, and that goes on from a kill.

    Mixed in before one of SB3's, whose parameters it has.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._was_normalized = False  # whether the observations of the last `learn` were
        self._generators: Generators | None = None  # what a checkpoint holds of them
        self._between_steps: list[Callable[[], None]] = []

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as SB3's `save` does, in one move: what was there before stays until the new file is on the disk.

        :param path: of the zip-file, or an open file
        :param exclude: names of attributes that are left out
        :param include: names of attributes that would be left out
        :raises OSError: if the file cannot be written; the old one is unchanged then
        """
        if isinstance(path, (str, PathLike)):
            # Into memory first: zip and PyTorch turn the errors of a full disk into others
            whole = io.BytesIO()
            super().save(whole, exclude, include)
            with replacing(resolve(path, "zip")) as file:
                file.write(whole.getbuffer())
        else:
            super().save(path, exclude, include)

    @classmethod
    def load(cls: type[SelfPersistent], path: str | Path | BufferedIOBase, *args: Any, **kwargs: Any) -> SelfPersistent:
        """Load a model as SB3's `load` does.

        :param path: of the zip-file, or the open file
        :param args: env, device, custom_objects, ... of SB3's `load`
        :param kwargs: these by name, and arguments of the algorithm to change
        :raises ValueError: for a name that is neither
        """
        own = inspect.signature(BaseAlgorithm.load).parameters
        check_known(cls, [name for name in kwargs if name not in own])
        if "stats_window_size" in kwargs:
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")  # the attribute that SB3 sets
        return super().load(path, *args, **kwargs)

    def call_between_steps(self, function: Callable[[], None]) -> None:
        """Call something once, as soon as the last step is stored and learned from; a callback comes before that."""
        self._between_steps.append(function)

    def _call_between_steps(self) -> None:
        functions, self._between_steps = self._between_steps, []
        for function in functions:
            function()

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Around SB3's `learn`: a run that fails before its first step, as a callback may refuse it, counts as none."""
        counters = {name: vars(self)[name] for name in COUNTERS if name in vars(self)}
        self._between_steps.clear()  # an earlier run may have left some
        try:
            yield
        except BaseException:
            self._last_obs = None  # begin new episodes: a step, or a rollout, may have been made that was not stored
            if self.num_timesteps == self._num_timesteps_at_start:
                vars(self).update(counters)
            raise
        self._call_between_steps()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._was_normalized = normalizes(self._vec_normalize_env)
        return super()._setup_learn(*args, **kwargs)

    def save_checkpoint(self, path: str | Path) -> None:
        """Save the model as `save` does, with the states of the random generators, for `resume`.

        :param path: of the zip-file
        :raises OSError: if the file cannot be written; the old one is unchanged then
        """
        self._generators = Generators.now(self.action_space)
        try:
            self.save(path, include=["_generators"])
        finally:
            self._generators = None

    @classmethod
    def resume(
        cls: type[SelfPersistent],
        path: str | PathLike[str],
        env: Any = None,
        device: Any = "auto",
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPersistent:
        """Go on from a checkpoint: model, phase, random generators, replay buffer, VecNormalize's statistics.

        Then `model.learn(total - model.num_timesteps, reset_num_timesteps=False)` makes what is left of `total`.

        :param path: folder of a `CheckpointCallback`, whose newest whole checkpoint is taken, or one model's file in it
        :param env: the environment or its id; with a VecNormalize or without, it takes the statistics, if there are any
        :param device: of the nets
        :param force_reset: begin a new episode; False only if the environment is in the very state of the checkpoint
        :param kwargs: of `load`, and arguments of the algorithm to change
        :raises ValueError: if there is no checkpoint
        """
        checkpoint = newest_checkpoint(path)
        if checkpoint.vecnormalize.exists():
            if env is not None:
                env = with_statistics(_vectorized(env), checkpoint.vecnormalize)
            else:
                warnings.warn(
                    f"The statistics of VecNormalize in {checkpoint.vecnormalize} are not used: pass env to `resume`. "
                    "An environment that is set later shows what nobody has normalised.",
                    stacklevel=2,
                )
        model = cls.load(checkpoint.model, env=env, device=device, force_reset=force_reset, **kwargs)
        model._load_experience(checkpoint, force_reset)
        if model.env is not None and model.seed is not None:
            # `load` has set the seed of the start, whose episodes would come again
            model.env.seed(model.seed + model.num_timesteps)
        if model._generators is not None:
            model._generators.restore(model.action_space)
            model._generators = None
        return model

    def _load_experience(self, checkpoint: Checkpoint, force_reset: bool) -> None:
        """Load what a checkpoint holds beside the model of what there is to learn from.

        :param checkpoint: the checkpoint
        :param force_reset: whether the environments begin new episodes
        """

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_generators", "_between_steps"]


class PersistentOffPolicyAlgorithm(PersistentAlgorithm, OffPolicyAlgorithm):
    """An off-policy algorithm whose replay buffer, too, is a whole file, and is made when it is needed.

    The parameters are those of SB3's OffPolicyAlgorithm.
    """

    horizon_length: int
    _n_online: int  # steps of the environment that were stored

    @property
    def replay_buffer(self) -> ReplayBuffer:
        """The replay buffer, made at its first use: who loads a model to play needs no memory for it."""
        if self.__dict__["replay_buffer"] is None:
            self.__dict__["replay_buffer"] = self._make_replay_buffer()
        buffer: ReplayBuffer = self.__dict__["replay_buffer"]
        return buffer

    @replay_buffer.setter
    def replay_buffer(self, buffer: ReplayBuffer | None) -> None:
        self.__dict__["replay_buffer"] = buffer

    @replay_buffer.deleter
    def replay_buffer(self) -> None:
        self.replay_buffer = None

    def _setup_model(self) -> None:
        buffer = self.__dict__["replay_buffer"]
        self.replay_buffer = NOT_YET
        with warnings.catch_warnings():
            if issubclass(self.replay_buffer_class or ReplayBuffer, NStepReplayBuffer):  # it will be tied to n_steps
                warnings.filterwarnings("ignore", r"`n_steps=\d+` is ignored because a custom `replay_buffer_class`")
            super()._setup_model()
        self.replay_buffer = buffer

    def _make_replay_buffer(self) -> ReplayBuffer:
        assert self.replay_buffer_class is not None
        kwargs = dict(self.replay_buffer_kwargs)
        if issubclass(self.replay_buffer_class, HerReplayBuffer):
            if self.env is None:
                raise ValueError(
                    "HerReplayBuffer computes rewards with the environment: pass env to `load` or `set_env`"
                )
            kwargs["env"] = self.env
        try:
            buffer = self.replay_buffer_class(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device="cpu",
                n_envs=self.n_envs,
                optimize_memory_usage=self.optimize_memory_usage,
                **kwargs,
            )
        except MemoryError as error:
            advice = f"buffer_size={self.buffer_size} does not fit into memory ({error}); choose a lower one"
            raise MemoryError(advice) from error
        self._tie(buffer, "the model")
        return buffer

    def _tie(self, buffer: ReplayBuffer, source: str) -> None:
        tie(buffer, self.horizon_length, self.n_steps, self.gamma, source)

    def save_replay_buffer(self, path: str | Path | BufferedIOBase) -> None:
        """Save the replay buffer as SB3's method of this name does, in one move.

        :param path: of the pickled buffer, or an open file
        :raises OSError: if the file cannot be written; the old one is unchanged then
        """
        if isinstance(path, (str, PathLike)):
            write_pickle(resolve(path, "pkl"), self.replay_buffer)
        else:
            super().save_replay_buffer(path)

    def load_replay_buffer(self, path: str | Path | BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load a replay buffer as SB3's method of this name does; what it samples is what this model learns from.

        :param path: of the pickled buffer, or the open file
        :param truncate_last_traj: take the last episode for finished, with chunks and n-step returns too; False
            if the environments go on where they were
        :raises ValueError: if the buffer does not fit the model, which then keeps the one it has
        """
        kept = self.__dict__["replay_buffer"]
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            check_buffer(self.replay_buffer, str(path), self.n_envs, self.observation_space, self.action_space)
            self._tie(self.replay_buffer, str(path))
        except BaseException as error:
            self.replay_buffer = kept
            if isinstance(error, (EOFError, pickle.UnpicklingError)):
                raise ValueError(f"{path} cannot be read as a replay buffer ({error}): is it complete?") from error
            raise
        if truncate_last_traj:
            end_episodes(self.replay_buffer)  # SB3 does so for hindsight only
        self._keep_size(str(path))

    def _keep_size(self, path: str) -> None:
        """A buffer that was loaded stays as large as it was: say so where another size was asked for."""
        size, asked = self.replay_buffer.buffer_size * self.n_envs, self.buffer_size
        if max(asked // self.n_envs, 1) != self.replay_buffer.buffer_size:
            self.buffer_size = size
            warnings.warn(
                f"buffer_size={asked} has no effect: the replay buffer of {path} has room for {size} transitions and "
                "keeps it. To learn with another size, begin without that buffer.",
                stacklevel=3,
            )

    def _load_experience(self, checkpoint: Checkpoint, force_reset: bool) -> None:
        if checkpoint.replay_buffer.exists():
            self.load_replay_buffer(checkpoint.replay_buffer, truncate_last_traj=force_reset)
        elif self._n_online > 0:
            warnings.warn(f"{checkpoint.model} has no replay buffer beside it: learning begins with none", stacklevel=3)


def _vectorized(env: GymEnv | str) -> VecEnv:
    env = gym.make(env) if isinstance(env, str) else env
    if isinstance(env, VecEnv):
        return env
    single: gym.Env[Any, Any] = Monitor(env)
    return DummyVecEnv([lambda: single])
