"""What ReinFlow begins with: a flow that clones data, or another model's."""

import math
import warnings
from copy import deepcopy
from os import PathLike
from typing import Any, Literal, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, PyTorchObs
from stable_baselines3.common.utils import update_learning_rate

from sb3_flow.common.algorithm import FlowAlgorithm
from sb3_flow.common.buffers import Batch, sample_dataset, to_batch
from sb3_flow.common.callbacks import correct_progress_bars, no_steps
from sb3_flow.common.checks import check_finite, require, require_whole
from sb3_flow.common.encoding import SharedFeatures
from sb3_flow.common.flow import Line, matching_error
from sb3_flow.common.hints import knows_nothing, normalization_hints, normalizes
from sb3_flow.common.log import Log
from sb3_flow.common.matching import MatchingLoss, matching_loss
from sb3_flow.common.normalize import learn_statistics
from sb3_flow.common.policies import ChunkActor
from sb3_flow.common.shift import shift_images
from sb3_flow.common.transfer import on_device
from sb3_flow.common.velocity import Flow
from sb3_flow.datasets import Dataset, DatasetSpec, load_fitting
from sb3_flow.reinflow.policies import ReinFlowActor

SelfPretrained = TypeVar("SelfPretrained", bound="PretrainedAlgorithm")

LOG_INTERVAL = 1000  # updates
# The learning rate of cloning falls to this share along half a cosine (cfg/gym/pretrain of the authors' code)
LAST_LEARNING_RATE = 0.1


class PretrainedAlgorithm(FlowAlgorithm, OnPolicyAlgorithm):
    """An on-policy algorithm whose timesteps may begin with updates from data.

    :param offline_dataset: data to clone, see `sb3_flow.datasets.load_dataset`
    :param offline_steps: timesteps at the start of training that are updates from these data, without the environment
    :param offline_batch_size: chunks per update from data
    :param offline_learning_rate: of the updates from data, at their start
    :param random_shift: pixels by which each image of the data is moved at most, at random; 0 for images as they are

    The other parameters are those of SB3's OnPolicyAlgorithm.
    """

    actor: ReinFlowActor
    horizon_length: int

    def __init__(
        self,
        *args: Any,
        offline_dataset: DatasetSpec | None,
        offline_steps: int,
        offline_batch_size: int,
        offline_learning_rate: float,
        random_shift: int,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.offline_dataset = offline_dataset
        self.offline_steps = offline_steps
        self.offline_batch_size = offline_batch_size
        self.offline_learning_rate = offline_learning_rate
        self.random_shift = random_shift
        self._dataset: Dataset | None = None
        self._dataset_of: Any = None  # the offline_dataset that it was loaded for
        self._moments_of: Literal["", "cloning", "fine-tuning"] = ""  # the loss that the actor's optimizer knows
        self._n_offline = 0  # updates from data that are done
        self._offline_from = 0  # of them, those before the cloning that is under way
        self._offline_before = 0  # of them, those that `num_timesteps` does not count

    @property
    def is_offline(self) -> bool:
        """Whether the next update is one from data."""
        return self._n_offline < self.offline_steps

    def start_from(self: SelfPretrained, model: BaseAlgorithm) -> SelfPretrained:
        """Begin with the flow of another model: SACFlow's policy, FQL's behaviour flow, or ReinFlow's.

        Its nets are copied. What they were trained with stays their own: give this model the same environment, and a
        VecNormalize with the same statistics; `flow_steps` is this model's.

        :param model: a model for the same spaces, with chunks of the same length
        :raises ValueError: if it is another kind of model, or this one has learned already
        """
        learned = self.num_timesteps + self._n_updates
        require(learned == 0, "num_timesteps", self.num_timesteps, "what was learned would be lost; start a new model")
        actor = getattr(model.policy, "actor", None)
        flow = actor.flow() if isinstance(actor, ChunkActor) else None
        advice = "it has no flow of its own to start from; take SACFlow, FQL or ReinFlow"
        require(flow is not None, "model", type(model).__name__, advice)
        assert isinstance(flow, Flow)
        for name in ("observation_space", "action_space", "horizon_length"):
            ours, theirs = getattr(self, name), getattr(model, name)
            require(ours == theirs, "model", f"{type(model).__name__}({name}={theirs})", f"{name} is {ours} here")
        ours, theirs = self.policy.normalize_images, model.policy.normalize_images
        require(ours == theirs, "model", f"{type(model).__name__} with normalize_images={theirs}", f"it is {ours} here")
        if isinstance(flow.features_extractor, SharedFeatures):
            flow = flow._replace(features_extractor=flow.features_extractor.extractor)
        ours, theirs = self.actor.flow_steps, getattr(model.policy, "flow_steps", self.actor.flow_steps)
        if ours != theirs:
            warnings.warn(
                f"flow_steps={ours} here and {theirs} in the {type(model).__name__}: the same flow comes to other "
                f"actions. To begin with that one's, give policy_kwargs={{'flow_steps': {theirs}}}.",
                stacklevel=2,
            )
        ours = self._vec_normalize_env
        if getattr(model, "_was_normalized", False) and (not normalizes(ours) or knows_nothing(ours)):
            warnings.warn(
                f"The {type(model).__name__} learned from observations that a VecNormalize had normalised: give this "
                "model's environment one with the same statistics (VecNormalize.load).",
                stacklevel=2,
            )
        # On the CPU, for it is saved with policy_kwargs and may be loaded where there is nothing else
        copy = deepcopy(flow)
        for net in (copy.features_extractor, copy.norm, copy.velocity):
            net.cpu()
        self.policy_kwargs = {**self.policy_kwargs, "flow": copy}
        self._setup_model()
        return self

    def pretrain(self: SelfPretrained, dataset: DatasetSpec, steps: float, **kwargs: Any) -> SelfPretrained:
        """Clone data by flow matching, without the environment; then `learn` fine-tunes.

        :param dataset: see `sb3_flow.datasets.load_dataset`
        :param steps: number of updates
        :param kwargs: arguments of `learn`: callback, log_interval, progress_bar, ...
        :raises ValueError: if the data do not fit, and if steps is no whole number >= 1
        """
        require_whole("steps", steps)
        # Before anything changes, for the data may be refused
        self._dataset, self._dataset_of = self._read(dataset), dataset
        self.offline_dataset = dataset
        before, self._offline_from = self.offline_steps, self._n_offline
        self.offline_steps = self._n_offline + int(steps)
        try:
            return self.learn(int(steps), **kwargs)
        finally:
            self.offline_steps = before if self._n_offline == self._offline_from else self._n_offline

    def learn(
        self: SelfPretrained,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPretrained:
        """Learn for so many timesteps: first what is left of the `offline_steps`, then in the environment.

        :param total_timesteps: updates from data and steps of the environment, together; whole rollouts are made
        :param tb_log_name: of the run in TensorBoard; None for the algorithm's name

        The other parameters are those of SB3's `learn`.
        """
        require(self.env is not None, "env", None, "pass it to `load`, or call `set_env`")
        self._follow_arguments()
        self._load_dataset()
        with self._learning():
            if reset_num_timesteps:
                self._offline_before = self._n_offline
            if self._dataset is not None and self._vec_normalize_env is not None:
                learn_statistics(self._vec_normalize_env, self._dataset)
            if self._n_offline + self._n_updates > 0:
                for hint in normalization_hints(self._vec_normalize_env, self._was_normalized):
                    warnings.warn(hint, stacklevel=2)
            super().learn(
                total_timesteps=int(total_timesteps),
                callback=callback,
                log_interval=log_interval,
                tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        return self

    def _follow_arguments(self) -> None:
        """Let arguments act that were assigned since the model was set up, as `model.gamma = 0.95`."""
        raise NotImplementedError

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # That of fine-tuning: cloning has a schedule of its own
        cloned = self._n_offline - self._offline_before
        planned = max(self.offline_steps, self._n_offline) - self._offline_before
        super()._update_current_progress_remaining(num_timesteps - cloned, max(total_timesteps - planned, 1))

    def _load_dataset(self) -> None:
        """The data behind `offline_dataset`, while they are needed; a loaded model reads them when it learns."""
        if not self.is_offline:
            return
        left = self.offline_steps - self._n_offline
        advice = f"{left} of them are left, and there is no offline_dataset; pass it, to `load` as well"
        require(self.offline_dataset is not None, "offline_steps", self.offline_steps, advice)
        if self._dataset is None or self._dataset_of is not self.offline_dataset:
            assert self.offline_dataset is not None
            self._dataset = self._read(self.offline_dataset)
            if isinstance(self.offline_dataset, ReplayBuffer):
                self.offline_dataset = self._dataset  # a copy, as for the off-policy algorithms
            self._dataset_of = self.offline_dataset

    def _read(self, spec: DatasetSpec) -> Dataset:
        return load_fitting(spec, self.observation_space, self.action_space, self.horizon_length)

    def _clone(self, callback: BaseCallback) -> bool:
        """What is left of the updates from data, as far as the timesteps reach. Returns whether to go on."""
        self._train_by("cloning")
        while self.is_offline and self.num_timesteps < self._total_timesteps:
            # As many updates between two calls of the callback as there are steps when learning online
            left = min(self.offline_steps - self._n_offline, self._total_timesteps - self.num_timesteps)
            updates = min(self.n_envs, left)
            log = Log()
            for _ in range(updates):
                self._clone_batch(log)
            self.num_timesteps += updates
            if self._n_offline % LOG_INTERVAL < updates:
                log.record(self.logger)
                self.dump_logs()
            callback.update_locals(locals() | no_steps(self.n_envs))
            goes_on = callback.on_step()
            correct_progress_bars(callback, updates - self.n_envs)
            self._call_between_steps()
            if not goes_on:
                return False
        self.policy.set_training_mode(False)
        return True

    def _train_by(self, loss: Literal["cloning", "fine-tuning"]) -> None:
        """Forget the moments of the actor's optimizer where they are those of the other loss."""
        if self._moments_of != loss:
            self.actor.optimizer.state.clear()
            self._moments_of = loss

    def _clone_batch(self, log: Log) -> None:
        """One update from data."""
        batch = self._sample_data()
        line = self.actor.sample_line(len(batch.actions))
        done = (self._n_offline - self._offline_from) / (self.offline_steps - self._offline_from)
        share = LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * done))
        update_learning_rate(self.actor.optimizer, share * self.offline_learning_rate)
        self.actor.set_training_mode(True)
        self._guard.begin()
        args = batch.observations, batch.actions, line, batch.in_episode
        self._step("matching", self.actor, log, self._matching_loss_fn, *args)
        self._stop_if_bad()
        self._n_offline += 1

    def _sample_data(self) -> Batch:
        assert self._dataset is not None
        chunks = sample_dataset(
            self._dataset.at(self._n_offline),
            self.offline_batch_size,
            self.horizon_length,
            self.gamma,
            self._vec_normalize_env,
        )
        batch = to_batch(chunks, self.gamma)
        check_finite("data", observations=batch.observations, actions=batch.actions)
        batch = on_device(batch, self.device)
        return shift_images(batch, self.random_shift, self.observation_space, self.policy_kwargs)

    def _matching_loss(
        self, observations: PyTorchObs, actions: Any, line: Line, in_episode: Any | None
    ) -> MatchingLoss:
        """Flow matching to the data's actions."""
        field = self.actor.field(observations)
        return matching_loss(matching_error(field, actions, line, self.actor.matching_target), in_episode)

    def _set_up_cloning(self) -> None:
        self._matching_loss_fn = self._compiled_loss(self._matching_loss)

    def _excluded_save_params(self) -> list[str]:
        # A name of data is kept, data are not
        data = [] if isinstance(self.offline_dataset, (str, PathLike)) else ["offline_dataset"]
        return [*super()._excluded_save_params(), "_dataset", "_dataset_of", *data]
