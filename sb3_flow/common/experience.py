"""Where batches come from: the replay buffer, offline data, or both."""

import warnings
from typing import NamedTuple

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow.common.buffers import Batch, join, sample_dataset, to_batch
from sb3_flow.common.checks import check_finite, require
from sb3_flow.datasets import Dataset


class Experience(NamedTuple):
    """What a model has to learn from at one moment."""

    buffer: ReplayBuffer
    dataset: Dataset | None
    offline: bool  # whether the environment is left alone
    offline_ratio: float | None  # share of the data in a batch online; None to sample from the union
    horizon_length: int
    gamma: float  # of a single step
    normalize: VecNormalize | None  # of the environment

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but the beginning of a first chunk, or of hindsight's first episode.

        :raises ValueError: if hindsight's first episode never ends
        """
        begun = isinstance(self.buffer, HerReplayBuffer) or self.buffer.size() > 0
        return self.dataset is None and begun and self.stored == 0

    @property
    def stored(self) -> int:
        """Chunks in the replay buffer, by their first steps; of hindsight's buffer the steps of whole episodes.

        :raises ValueError: if hindsight's first episode never ends
        """
        if not isinstance(self.buffer, HerReplayBuffer):
            return max(0, self.buffer.size() - self.horizon_length + 1) * self.buffer.n_envs
        ended = int((self.buffer.ep_length > 0).sum())
        advice = "no episode ends within it; choose a larger one, or set a time limit"
        size = self.buffer.buffer_size * self.buffer.n_envs
        require(ended > 0 or not self.buffer.full, "buffer_size", size, advice)
        return ended

    def offline_share(self, batch_size: int, update: int) -> int:
        """How many of a batch come from the offline data.

        :param batch_size: B
        :param update: how many updates were made before. Of data in shards, the one whose turn it is counts: beside the
            100 million steps of all of them a step of the environment would hardly ever be drawn
        """
        if self.dataset is None:
            return 0
        stored = 0 if self.offline else self.stored
        if stored == 0:
            return batch_size
        if self.offline_ratio is not None:
            exact = self.offline_ratio * batch_size
            return int(exact) + int(exact % 1 > 0 and np.random.random() < exact % 1)
        resident = len(self.dataset.at(update))
        return int(np.random.binomial(batch_size, resident / (resident + stored)))

    def sample(self, batch_size: int, update: int) -> Batch:
        """One batch, on the CPU.

        :param batch_size: B
        :param update: how many updates were made before; data in shards take turns
        :raises NonFiniteError: if a number is not finite
        """
        n_offline = self.offline_share(batch_size, update)
        if isinstance(self.buffer, HerReplayBuffer) and n_offline == batch_size - 1:
            # Of a single step hindsight relabels none, and not every environment computes the rewards of no steps
            n_offline += int(np.random.choice((-1, 1)))
        batches = []
        if n_offline < batch_size:
            samples = self.buffer.sample(batch_size - n_offline, env=self.normalize)
            batches.append(to_batch(samples, self.gamma))
        if n_offline > 0:
            assert self.dataset is not None
            data = self.dataset.at(update)
            chunks = sample_dataset(data, n_offline, self.horizon_length, self.gamma, self.normalize)
            batches.append(to_batch(chunks, self.gamma))
        batch = batches[0] if len(batches) == 1 else join(*batches)
        if batch.valid is not None and not batch.valid.any():
            warnings.warn(
                f"A time limit cuts short each of {batch_size} chunks, and the critic learns from no others. If "
                f"episodes are shorter than horizon_length={self.horizon_length}, choose a lower one.",
                stacklevel=2,
            )
        check_finite(
            "replay batch",
            observations=batch.observations,
            actions=batch.actions,
            rewards=batch.rewards,
            next_observations=batch.next_observations,
        )
        return batch
