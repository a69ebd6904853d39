"""Action chunks from SB3's single-step replay storage, and the one batch format that the updates see.

Shapes: B batch, h horizon length, d action dimension, D = h d.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow.checks import require, require_integer

ReplaySamples = ReplayBufferSamples | DictReplayBufferSamples


class Batch(NamedTuple):
    """What one update is made from, for single steps and for chunks."""

    observations: PyTorchObs
    actions: th.Tensor  # (B, D)
    next_observations: PyTorchObs  # after the last step
    rewards: th.Tensor  # (B,): sum of gamma^j r_j
    dones: th.Tensor  # (B,): 1 where the last step terminated the episode
    discounts: th.Tensor | float  # gamma^m, (B,) or a number
    valid: th.Tensor | None = None  # (B,): 0 where the chunk crosses an episode's end; None: 1 everywhere
    in_episode: th.Tensor | None = None  # (B, D): 0 from the first step after the episode's end on; None: 1 everywhere


class ChunkSamples(NamedTuple):
    """What the chunk buffers return: SB3's fields, and two masks."""

    observations: PyTorchObs
    actions: th.Tensor  # (B, D)
    next_observations: PyTorchObs
    dones: th.Tensor  # (B, 1)
    rewards: th.Tensor  # (B, 1)
    discounts: th.Tensor  # (B, 1)
    valid: th.Tensor  # (B, 1)
    in_episode: th.Tensor  # (B, D)


def to_batch(samples: ReplaySamples | ChunkSamples, gamma: float) -> Batch:
    """Flatten what a replay buffer returned.

    :param samples: of any SB3 replay buffer, or of a chunk buffer
    :param gamma: discount of a single step, for buffers that return none
    """
    return Batch(
        samples.observations,
        samples.actions,
        samples.next_observations,
        samples.rewards.flatten(),
        samples.dones.flatten(),
        gamma if samples.discounts is None else samples.discounts.flatten(),
        samples.valid.flatten() if isinstance(samples, ChunkSamples) else None,
        samples.in_episode if isinstance(samples, ChunkSamples) else None,
    )


class ChunkSampling(ReplayBuffer):
    """Samples h consecutive steps of one environment, starting at every stored step with equal probability.

    The storage is SB3's, one step a row. Steps after an episode's end are masked; where the end lies before the last
    step, the whole chunk is marked invalid, for there is no one state to bootstrap from that h steps led to.

    :param horizon_length: h >= 1
    :param gamma: discount of a single step
    :raises ValueError: with optimize_memory_usage, whose storage lacks the last observation of an episode

    The other parameters are those of SB3's buffers.
    """

    def __init__(self, *args: Any, horizon_length: int, gamma: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        require_integer("horizon_length", horizon_length)
        require(
            horizon_length <= self.buffer_size,
            "horizon_length",
            horizon_length,
            f"the buffer holds only {self.buffer_size} steps of each environment; raise buffer_size",
        )
        require(
            not self.optimize_memory_usage, "optimize_memory_usage", True, "chunks need next observations; leave it off"
        )
        self.horizon_length = horizon_length
        self.gamma = gamma

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ChunkSamples:  # type: ignore[override]
        starts = self.size() - self.horizon_length + 1
        if starts < 1:
            raise ValueError(
                f"The replay buffer holds {self.size()} steps of each environment, fewer than "
                f"horizon_length={self.horizon_length}: raise learning_starts, or load the replay buffer as well."
            )
        oldest = self.pos if self.full else 0
        batch_inds = (oldest + np.random.randint(0, starts, size=batch_size)) % self.buffer_size
        return self._get_samples(batch_inds, env)

    def end_episodes(self) -> None:
        """Mark what was stored last as truncated, because the environments are about to be reset."""
        if self.size() > 0:
            last = self.pos - 1
            self.timeouts[last] = np.where(self.dones[last], self.timeouts[last], 1)
            self.dones[last] = 1

    def _get_samples(  # type: ignore[override]
        self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None
    ) -> ChunkSamples:
        env_inds = np.random.randint(0, self.n_envs, size=len(batch_inds))
        steps = np.arange(self.horizon_length)
        inds = (batch_inds[:, None] + steps) % self.buffer_size  # (B, h)
        columns = env_inds[:, None]
        dones = self.dones[inds, columns]
        in_episode = np.ones_like(dones)
        in_episode[:, 1:] = np.cumprod(1 - dones[:, :-1], axis=1)
        rewards = self._normalize_reward(self.rewards[inds, columns], env)
        discounts = (self.gamma**steps).astype(np.float32)
        last = inds[:, -1]
        actions = self.actions[inds, columns]  # (B, h, d)
        batch = len(batch_inds)
        return ChunkSamples(
            observations=self._gather(self.observations, batch_inds, env_inds, env),
            actions=self.to_torch(actions.reshape(batch, -1)),
            next_observations=self._gather(self.next_observations, last, env_inds, env),
            dones=self.to_torch((dones[:, -1] * (1 - self.timeouts[last, env_inds]))[:, None]),
            rewards=self.to_torch((rewards * discounts * in_episode).sum(axis=1, keepdims=True)),
            discounts=self.to_torch(np.full((batch, 1), self.gamma**self.horizon_length, dtype=np.float32)),
            valid=self.to_torch(in_episode[:, -1:]),
            in_episode=self.to_torch(in_episode.repeat(self.action_dim, axis=1)),
        )

    def _gather(
        self, storage: Any, inds: NDArray[np.int64], env_inds: NDArray[np.int64], env: VecNormalize | None
    ) -> PyTorchObs:
        """Observations at (row, environment), normalised, on the device."""
        raise NotImplementedError


class ChunkReplayBuffer(ChunkSampling):
    """Chunks of array observations. The parameters are those of `ChunkSampling`."""

    def _gather(
        self, storage: Any, inds: NDArray[np.int64], env_inds: NDArray[np.int64], env: VecNormalize | None
    ) -> PyTorchObs:
        obs = self._normalize_obs(storage[inds, env_inds], env)
        assert isinstance(obs, np.ndarray)
        return self.to_torch(obs)


class ChunkDictReplayBuffer(ChunkSampling, DictReplayBuffer):  # type: ignore[misc]
    """Chunks of Dict observations. The parameters are those of `ChunkSampling`."""

    def _gather(
        self, storage: Any, inds: NDArray[np.int64], env_inds: NDArray[np.int64], env: VecNormalize | None
    ) -> PyTorchObs:
        obs = self._normalize_obs({key: values[inds, env_inds] for key, values in storage.items()}, env)
        assert isinstance(obs, dict)
        return {key: self.to_torch(values) for key, values in obs.items()}
