"""Learning in two phases, from data and then in an environment."""

import warnings
from collections.abc import Iterator
from copy import copy
from os import PathLike
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, Schedule, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from sb3_flow.common.buffers import Batch, end_episodes, same_shapes
from sb3_flow.common.callbacks import correct_progress_bars, no_steps
from sb3_flow.common.checks import as_integer, require, require_number, require_whole
from sb3_flow.common.chunked import ChunkedAlgorithm
from sb3_flow.common.experience import Experience
from sb3_flow.common.hints import jumps, learning_hints, normalization_hints
from sb3_flow.common.normalize import learn_statistics, running_returns
from sb3_flow.common.reward_scale import RewardScale
from sb3_flow.common.shift import check_shift, shift_images
from sb3_flow.common.transfer import on_device
from sb3_flow.datasets import Dataset, DatasetSpec, load_fitting
from sb3_flow.datasets.observations import has_channels_last, leaves

SelfOfflineToOnline = TypeVar("SelfOfflineToOnline", bound="OfflineToOnlineAlgorithm")

OFFLINE_LOG_INTERVAL = 1000  # updates; there are no episodes to count
# Attributes that are whole numbers, and the lowest that they may be
SIZES = {
    "buffer_size": 1,
    "learning_starts": 0,
    "batch_size": 2,  # batches are normalised
    "gradient_steps": -1,
    "n_steps": 1,
    "horizon_length": 1,
    "offline_steps": 0,
    "start_training": 0,
    "random_shift": 0,
    "_stats_window_size": 1,
}


class OfflineToOnlineAlgorithm(ChunkedAlgorithm):
    """An off-policy algorithm that can begin with data.

    :param learning_starts: steps of random actions before learning; None for 5,000, or 0 with offline data
    :param offline_dataset: data to learn from, see `sb3_flow.datasets.load_dataset`
    :param offline_steps: timesteps at the start of training that are updates from these data, without the environment
    :param offline_ratio: share of the data in a batch when learning online, in [0, 1]; None for the union
    :param start_training: steps of the environment to store, after the offline phase, before the first update
    :param random_shift: pixels by which each image of a batch is moved at most, at random; 0 for images as they are
    :raises ValueError: before training, for arguments outside of what is stated here

    The other parameters are those of `ChunkedAlgorithm` and of SB3's OffPolicyAlgorithm.
    """

    def __init__(
        self,
        *args: Any,
        learning_starts: int | None = None,
        offline_dataset: DatasetSpec | None = None,
        offline_steps: int = 0,
        offline_ratio: float | None = None,
        start_training: int = 0,
        random_shift: int = 0,
        **kwargs: Any,
    ):
        if learning_starts is None:
            learning_starts = 5_000 if offline_dataset is None else 0
        kwargs["learning_starts"] = learning_starts
        for name in ("policy_kwargs", "replay_buffer_kwargs"):
            kwargs[name] = copy(kwargs.get(name))  # SB3 and we write into them
        self._offline_before = 0  # updates of the offline phase that `num_timesteps` does not count
        super().__init__(*args, **kwargs)
        self.offline_dataset = offline_dataset
        self.offline_steps = offline_steps
        self.offline_ratio = offline_ratio
        self.start_training = start_training
        self.random_shift = random_shift
        self._dataset: Dataset | None = None
        self._dataset_of: Any = None  # the offline_dataset that it was loaded for
        self._dataset_name = ""
        self._n_offline = 0  # updates of the offline phase that are done
        self._offline_log_interval = OFFLINE_LOG_INTERVAL
        self._n_online = 0  # steps of the environment that were stored
        self.reward_scale: RewardScale | None = None  # of critics that need one
        self._scale_knows_data = False
        self._adopt_n_steps()

    @property
    def learning_starts(self) -> int:
        """Random steps before learning. Updates from data count as such, those before `learn` counted anew, too."""
        return max(0, int(self.__dict__["learning_starts"]) - self._offline_before)

    @learning_starts.setter
    def learning_starts(self, steps: int) -> None:
        self.__dict__["learning_starts"] = steps

    def _check_arguments(self) -> None:
        """Refuse what does not fit; `load` changes arguments, too, so that this is not the constructor's."""
        self._check_sizes()
        has_buffer = self.n_steps == 1 or not isinstance(self.observation_space, spaces.Dict)
        advice = "SB3 has no n-step buffer for Dict observations; use n_steps=1 or flatten them"
        require(has_buffer, "n_steps", self.n_steps, advice)
        self._check_chunks()
        check_shift(self.random_shift, self.observation_space, self.policy_kwargs)
        if self.offline_ratio is not None:
            require_number("offline_ratio", self.offline_ratio, 0, 1, "a number in [0, 1], or None for the union")

    def _check_normalized(self) -> None:
        """Refuse what a replay buffer cannot store: VecNormalize gives it the observations as they come from inside."""
        normalize = self._vec_normalize_env
        if normalize is None or same_shapes(normalize.observation_space, self.observation_space):
            return
        inside = normalize.observation_space
        how = "VecNormalize(VecFrameStack(env, n))"
        if any(map(has_channels_last, leaves(inside).values())):
            left_out = "norm_obs_keys=[...]" if isinstance(inside, spaces.Dict) else "norm_obs=False"
            how = f"VecNormalize(VecTransposeImage(env), {left_out})"
        advice = (
            f"what is around its VecNormalize changes the shape of observations; put it inside, as {how} does (in "
            "rl-zoo3 a vec_env_wrapper)"
        )
        require(False, "env", self.env, advice)

    def _check_sizes(self) -> None:
        for name, lowest in SIZES.items():
            size = self.__dict__[name]
            setattr(self, name, as_integer(name.removeprefix("_"), size, lowest))
        if not isinstance(self.train_freq, TrainFreq):
            freq, unit = self.train_freq if isinstance(self.train_freq, (tuple, list)) else (self.train_freq, "step")
            self.train_freq = (as_integer("train_freq", freq), unit)

    def _follow_arguments(self) -> None:
        """Let arguments act that were assigned since the model was set up, as `model.bc_coef = 3`."""
        self._check_arguments()
        self._convert_train_freq()
        assert isinstance(self.train_freq, TrainFreq)
        single = self.train_freq.unit is TrainFrequencyUnit.STEP or self.n_envs == 1
        advice = f"of {self.n_envs} environments each is in another episode; give a number of steps"
        require(single, "train_freq", (self.train_freq.frequency, self.train_freq.unit.value), advice)
        self._tie(self.replay_buffer, "the model")

    def _load_dataset(self) -> None:
        """The data behind `offline_dataset`, unless they are here; a loaded model reads them when it learns."""
        if self.offline_dataset is None:
            left = self.offline_steps - self._n_offline
            advice = f"{left} of them are left, and there is no offline_dataset; pass it, to `load` as well"
            require(left <= 0, "offline_steps", self.offline_steps, advice)
            advice = "it is the share of offline data, and there is no offline_dataset"
            require(self.offline_ratio is None or self._dataset_name != "", "offline_ratio", self.offline_ratio, advice)
            advice = "it follows an offline phase, and there is no offline_dataset; from scratch use learning_starts"
            followed = self._dataset_name != "" or self._n_offline + self.num_timesteps > 0
            require(self.start_training == 0 or followed, "start_training", self.start_training, advice)
            if self._dataset_name:
                warnings.warn(
                    f"Learning goes on without the offline data that this model had ({self._dataset_name}). To keep "
                    "them, pass offline_dataset to `load`.",
                    stacklevel=3,
                )
                self._dataset, self._dataset_of, self._dataset_name, self.offline_ratio = None, None, "", None
        elif self._dataset is None or self._dataset_of is not self.offline_dataset:
            require(self.n_steps == 1, "n_steps", self.n_steps, "offline data have single steps; use horizon_length")
            dataset = load_fitting(self.offline_dataset, self.observation_space, self.action_space, self.horizon_length)
            if isinstance(self.offline_dataset, ReplayBuffer):
                self.offline_dataset = dataset  # a copy: the buffer is free to go, or to change and be given again
            self._dataset, self._dataset_of, self._dataset_name = dataset, self.offline_dataset, repr(dataset)

    def _setup_model(self) -> None:
        # Here and not in __init__: `load` sets the attributes in between
        self._check_arguments()
        self._complete_arguments()
        super()._setup_model()
        self._built_horizon = self.horizon_length

    @property
    def is_offline(self) -> bool:
        """Whether the next update belongs to the offline phase."""
        return self._n_offline < self.offline_steps

    @property
    def _only_stores(self) -> bool:
        """Whether there are too few steps of the environment for updates online."""
        return not self.is_offline and self._n_online < self.start_training

    @property
    def experience(self) -> Experience:
        """What there is to learn from now."""
        self._tie(self.replay_buffer, "the model")
        return Experience(
            self.replay_buffer,
            self._dataset,
            self.is_offline,
            self.offline_ratio,
            self.horizon_length,
            self.gamma,
            self._vec_normalize_env,
        )

    def _sample(self, batch_size: int) -> Batch:
        """A batch on the model's device, its rewards on the critics' scale, its images moved at random."""
        batch = self.experience.sample(batch_size, self._n_updates - 1)
        batch = on_device(self._scaled(batch), self.device)
        return shift_images(batch, self.random_shift, self.observation_space, self.policy_kwargs)

    def _scaled(self, batch: Batch) -> Batch:
        if self.reward_scale is None:
            return batch
        scale, normalize = self.reward_scale.value, self._vec_normalize_env
        if normalize is not None and normalize.norm_reward:
            scale /= float(np.sqrt(normalize.ret_rms.var + normalize.epsilon))  # it has divided by that
        return batch._replace(rewards=batch.rewards / scale)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._n_online += len(dones)
        if self.reward_scale is not None:
            normalize = self._vec_normalize_env
            rewards = reward if normalize is None else normalize.get_original_reward()
            self.reward_scale.step(rewards, dones, self.gamma)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        self._call_between_steps()
        goes_on = not self.is_offline or self._train_offline(callback, log_interval)
        if not goes_on or self.num_timesteps >= self._total_timesteps:
            return RolloutReturn(0, 0, continue_training=False)
        rollout = super().collect_rollouts(
            env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
        )
        if not rollout.continue_training:
            self._last_obs = None  # SB3 did not store the last step: a later `learn` has to start with a reset
        return rollout

    def _train_offline(self, callback: BaseCallback, log_interval: int | None) -> bool:
        """The offline phase, as far as the timesteps reach. Returns whether to go on."""
        while self.is_offline and self.num_timesteps < self._total_timesteps:
            # As many updates between two calls of the callback as there are steps when learning online
            left = min(self.offline_steps - self._n_offline, self._total_timesteps - self.num_timesteps)
            updates = min(self.n_envs, left)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self.train(updates, self.batch_size)
            self._n_offline += updates
            self.num_timesteps += updates
            if log_interval is not None and self._n_offline % self._offline_log_interval < updates:
                self.dump_logs()
            callback.update_locals(locals() | no_steps(self.n_envs))
            goes_on = callback.on_step()
            correct_progress_bars(callback, updates - self.n_envs)
            self._call_between_steps()
            if not goes_on:
                return False
        return True

    def learn(
        self: SelfOfflineToOnline,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOfflineToOnline:
        """Learn for so many timesteps: first what is left of the `offline_steps`, then in the environment.

        After a callback or an exception stopped it in the environment, another `learn` starts with a reset of the
        environments, for SB3 does not store the last step.

        :param total_timesteps: updates of the offline phase and steps of the environment, together
        :param tb_log_name: of the run in TensorBoard; None for the algorithm's name

        The other parameters are those of SB3's `learn`.
        """
        self._follow_arguments()
        if total_timesteps > self.offline_steps - self._n_offline:  # from data alone nothing is stored
            self._check_normalized()
        self._load_dataset()
        n_updates = self._n_updates
        with self._learning():
            if reset_num_timesteps:
                self._offline_before = self._n_offline
            self._learn_scales()
            for hint in self._hints(int(total_timesteps), reset_num_timesteps):
                warnings.warn(hint, stacklevel=2)
            if reset_num_timesteps or self._last_obs is None:
                end_episodes(self.replay_buffer)  # SB3 is about to reset the environments
                if self.reward_scale is not None:
                    self.reward_scale.begin(self.n_envs)
            super().learn(
                total_timesteps=int(total_timesteps),
                callback=callback,
                log_interval=log_interval,
                tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        self._say_if_nothing_was_learned(n_updates)
        return self

    def _learn_scales(self) -> None:
        """What is normalised by running statistics is normalised by those of the data, too."""
        if self._dataset is None:
            return
        if self._vec_normalize_env is not None:
            learn_statistics(self._vec_normalize_env, self._dataset)
        if self.reward_scale is not None and not self._scale_knows_data:
            self.reward_scale.see(running_returns(self._dataset.at(0), self.gamma))
            self._scale_knows_data = True

    def _say_if_nothing_was_learned(self, n_updates: int) -> None:
        hindsight = isinstance(self.replay_buffer, HerReplayBuffer)
        waits = self._n_updates == n_updates and self.num_timesteps > self.learning_starts
        if hindsight and waits and self.experience.is_empty:
            warnings.warn(
                f"Nothing was learned in {self.num_timesteps} timesteps: no episode has ended, and hindsight learns "
                "from whole ones. Learn longer, or give the environment a time limit.",
                stacklevel=3,
            )

    def _hints(self, total_timesteps: int, reset_num_timesteps: bool) -> Iterator[str]:
        """What the user would else find out late."""
        if self._n_updates > 0:
            yield from normalization_hints(self._vec_normalize_env, self._was_normalized)
        if reset_num_timesteps:  # else it may be one of many short calls
            left = max(0, self.offline_steps - self._n_offline)
            was_loaded = self._n_updates > 0 and self._last_obs is None
            goes_on, offline = was_loaded and self._n_online > 0, was_loaded and left > 0 and self._n_offline > 0
            stores = max(0, self.start_training - self._n_online)
            yield from learning_hints(
                total_timesteps, self.learning_starts, left, stores, self._online_only, goes_on, offline
            )
        else:
            end = self.num_timesteps + total_timesteps
            yield from jumps(self._schedules, self.num_timesteps, self._total_timesteps, end)

    @property
    def _schedules(self) -> dict[str, Schedule]:
        """What follows the progress, by the names of the arguments."""
        return {"learning_rate": self.lr_schedule}

    @property
    def _online_only(self) -> list[str]:
        """Arguments that concern the phase in the environment alone."""
        given = {"offline_ratio": self.offline_ratio is not None, "start_training": self.start_training > 0}
        return [name for name, is_given in given.items() if is_given]

    def learn_offline(self: SelfOfflineToOnline, steps: float, **kwargs: Any) -> SelfOfflineToOnline:
        """Make some updates from the offline data alone, whatever `offline_steps` says; then `learn` goes on online.

        That is so as well if they are stopped early. A checkpoint made on the way goes on with them.

        :param steps: number of updates
        :param kwargs: arguments of `learn`: callback, progress_bar, ...; `log_interval` is a number of updates here,
            1,000 unless given, None for no row in the log
        :raises ValueError: without `offline_dataset`, and if steps is no whole number >= 1
        """
        advice = f"there are no data to learn from; pass it to {type(self).__name__}, or to `load`"
        require(self.offline_dataset is not None, "offline_dataset", None, advice)
        require_whole("steps", steps)
        interval = kwargs.setdefault("log_interval", OFFLINE_LOG_INTERVAL)
        interval = OFFLINE_LOG_INTERVAL if interval is None else as_integer("log_interval", interval)
        # Before the phase is lengthened: if the data are refused, nothing has changed
        self._load_dataset()
        before, done = self.offline_steps, self._n_offline
        self.offline_steps, self._offline_log_interval = done + int(steps), interval
        try:
            return self.learn(steps, **kwargs)
        finally:
            self._offline_log_interval = OFFLINE_LOG_INTERVAL
            self.offline_steps = before if self._n_offline == done else self._n_offline

    def _excluded_save_params(self) -> list[str]:
        # A name of data is kept, data are not
        data = [] if isinstance(self.offline_dataset, (str, PathLike)) else ["offline_dataset"]
        return [*super()._excluded_save_params(), "_dataset", "_dataset_of", *data]
