"""Action chunks from SB3's single-step storage and from offline data, and the one batch format that the updates see.

Shapes: B batch, h horizon length, d action dimension, D = h d.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flow.common.checks import require, require_integer
from sb3_flow.datasets import OfflineDataset
from sb3_flow.datasets.observations import Observations, each

ReplaySamples = ReplayBufferSamples | DictReplayBufferSamples


class Batch(NamedTuple):
    """What one update is made from, for single steps and for chunks."""

    observations: PyTorchObs
    actions: th.Tensor  # (B, D)
    next_observations: PyTorchObs  # after the last step
    rewards: th.Tensor  # (B,): sum of gamma^j r_j
    dones: th.Tensor  # (B,): 1 where there is nothing to bootstrap from
    discounts: th.Tensor | float  # gamma^m, (B,) or a number
    valid: th.Tensor | None = None  # (B,): 0 where there is no target, see `Fold`; None: 1 everywhere
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


class Fold(NamedTuple):
    """Chunks of single steps as one step each."""

    rewards: NDArray[np.float32]  # (B, 1): sum of gamma^j r_j, up to the first step without a bootstrap
    dones: NDArray[np.float32]  # (B, 1): 1 if there was such a step
    # (B, 1): 0 where a time limit cuts the chunk short, for there is no one state to bootstrap from that h steps led
    # to. Where it ends in a termination, the return is complete
    valid: NDArray[np.float32]
    in_episode: NDArray[np.float32]  # (B, h): 0 from the first step after the episode's end on


def fold_chunks(
    rewards: NDArray[np.float32], masks: NDArray[np.float32], ends: NDArray[np.float32], gamma: float
) -> Fold:
    """Return, end and masks of chunks.

    In play data the episode goes on after the task is solved, which a mask of 0 marks: what follows it in the chunk is
    no longer the task's.

    :param rewards: (B, h)
    :param masks: (B, h): 1 to bootstrap from the next observation, else 0
    :param ends: (B, h): 1 at the last step of an episode, terminated or not
    :param gamma: discount of a single step
    """
    in_episode, counts = np.ones((2, *rewards.shape), dtype=np.float32)
    np.cumprod(1 - ends[:, :-1], axis=1, out=in_episode[:, 1:])
    np.cumprod(masks[:, :-1], axis=1, out=counts[:, 1:])
    discounts = (gamma ** np.arange(rewards.shape[1])).astype(np.float32)
    returns = (rewards * discounts * in_episode * counts).sum(axis=1, keepdims=True)
    dones = ((1 - masks) * in_episode).max(axis=1, keepdims=True)
    return Fold(returns, dones, np.maximum(in_episode[:, -1:], dones), in_episode)


class ChunkSampling(ReplayBuffer):
    """Samples h consecutive steps of one environment, starting at every stored step with equal probability.

    The storage is SB3's, one step a row. Steps after an episode's end are masked, and chunks that have no target are
    marked, see `Fold`.

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

    def _get_samples(  # type: ignore[override]
        self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None
    ) -> ChunkSamples:
        env_inds = np.random.randint(0, self.n_envs, size=len(batch_inds))
        inds = (batch_inds[:, None] + np.arange(self.horizon_length)) % self.buffer_size  # (B, h)
        columns = env_inds[:, None]
        ends = self.dones[inds, columns]
        fold = fold_chunks(
            self._normalize_reward(self.rewards[inds, columns], env),
            1 - ends * (1 - self.timeouts[inds, columns]),
            ends,
            self.gamma,
        )
        return _chunk_samples(
            observations=self._gather(self.observations, batch_inds, env_inds, env),
            actions=self.actions[inds, columns],
            next_observations=self._gather(self.next_observations, inds[:, -1], env_inds, env),
            fold=fold,
            gamma=self.gamma,
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


def tie(buffer: ReplayBuffer, horizon_length: int, n_steps: int, gamma: float, source: str) -> None:
    """Let a buffer sample what a model learns from, whoever has filled it, on the CPU: see `sb3_flow.common.transfer`.

    :param buffer: of any class
    :param horizon_length: h of the model
    :param n_steps: of the model's returns
    :param gamma: of the model, of a single step
    :param source: where the buffer is from
    :raises ValueError: if it cannot; then it has not changed
    """
    holds = f"{source} holds a {type(buffer).__name__}, which has no"
    require(
        horizon_length == 1 or isinstance(buffer, ChunkSampling), "horizon_length", horizon_length, f"{holds} chunks"
    )
    require(
        n_steps == 1 or isinstance(buffer, NStepReplayBuffer),
        "n_steps",
        n_steps,
        f"{holds} n-step returns; use n_steps=1",
    )
    buffer.device = th.device("cpu")
    if isinstance(buffer, ChunkSampling):
        buffer.horizon_length, buffer.gamma = horizon_length, gamma
    elif isinstance(buffer, NStepReplayBuffer):
        buffer.n_steps, buffer.gamma = n_steps, gamma


def check_buffer(
    buffer: ReplayBuffer,
    source: str,
    n_envs: int,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> None:
    """Refuse the buffer of another model.

    :param buffer: as it was loaded
    :param source: where it is from
    :param n_envs: of the model, as its spaces
    :raises ValueError: naming what differs
    """
    advice = (
        f"{source} has steps of {buffer.n_envs}; pass as many environments, or go on without it, with an empty buffer"
    )
    require(buffer.n_envs == n_envs, "number of environments", n_envs, advice)
    for name, theirs, ours in (
        ("observation_space", buffer.observation_space, observation_space),
        ("action_space", buffer.action_space, action_space),
    ):
        require(same_shapes(theirs, ours), name, ours, f"{source} has steps of another: {theirs}")


def same_shapes(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether what one space has can be stored where the other's is."""
    return bool(_shapes(one) == _shapes(other))


def _shapes(space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: part.shape for key, part in space.items()}
    return space.shape


def end_episodes(buffer: ReplayBuffer) -> None:
    """Mark what was stored last as truncated, because the environments are about to be reset.

    :param buffer: unchanged if a sample needs nothing of the next step
    """
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SB3 takes it for a buffer that was just loaded
            buffer.truncate_last_trajectory()
    elif (isinstance(buffer, (ChunkSampling, NStepReplayBuffer)) or buffer.optimize_memory_usage) and buffer.size() > 0:
        last = buffer.pos - 1
        if not buffer.optimize_memory_usage:  # which samples as if the steps around a seam were one episode
            buffer.timeouts[last] = np.where(buffer.dones[last], buffer.timeouts[last], 1)
        buffer.dones[last] = 1


def sample_dataset(
    dataset: OfflineDataset,
    batch_size: int,
    horizon_length: int,
    gamma: float,
    env: VecNormalize | None = None,
) -> ChunkSamples:
    """Sample h consecutive steps of offline data, starting at every step with equal probability.

    :param dataset: the data; nothing is copied but the sample
    :param batch_size: B
    :param horizon_length: h >= 1
    :param gamma: discount of a single step
    :param env: normalises observations and rewards as it does those of the environment
    """
    starts = dataset.rows(np.random.randint(len(dataset), size=batch_size))
    rows = dataset.chunk_rows(starts, horizon_length)  # (B, h)
    rewards = ReplayBuffer._normalize_reward(dataset.rewards[rows], env)
    ends = dataset.ends[rows].astype(np.float32)
    fold = fold_chunks(rewards, dataset.masks[rows], ends, gamma)
    # Behind an episode's end there may be no row. Nothing is bootstrapped from there, so any observation will do
    last = np.where(fold.in_episode[:, -1] == 1, rows[:, -1], starts)

    def observations(raw: Observations) -> PyTorchObs:
        normalized: Observations = ReplayBuffer._normalize_obs(raw, env)
        return each(th.as_tensor, normalized)

    return _chunk_samples(
        observations=observations(dataset.observations_at(starts)),
        actions=dataset.actions[rows],
        next_observations=observations(dataset.next_observations(last)),
        fold=fold,
        gamma=gamma,
    )


def _chunk_samples(
    observations: PyTorchObs,
    actions: NDArray[np.float32],
    next_observations: PyTorchObs,
    fold: Fold,
    gamma: float,
) -> ChunkSamples:
    """Folded chunks as tensors, whichever storage they come from. Actions: (B, h, d)."""
    batch_size, horizon_length, action_dim = actions.shape
    return ChunkSamples(
        observations=observations,
        actions=th.as_tensor(actions.reshape(batch_size, -1)),
        next_observations=next_observations,
        dones=th.as_tensor(fold.dones),
        rewards=th.as_tensor(fold.rewards),
        discounts=th.as_tensor(np.full((batch_size, 1), gamma**horizon_length, dtype=np.float32)),
        valid=th.as_tensor(fold.valid),
        in_episode=th.as_tensor(fold.in_episode.repeat(action_dim, axis=1)),
    )


def join(first: Batch, second: Batch) -> Batch:
    """Two batches as one."""

    def observations(field: str) -> PyTorchObs:
        one, other = getattr(first, field), getattr(second, field)
        if isinstance(one, dict):
            return {key: th.cat([part, other[key]]) for key, part in one.items()}
        return th.cat([one, other])

    def both(field: str, like: str) -> th.Tensor:
        parts = [getattr(batch, field) for batch in (first, second)]
        # None stands for 1 everywhere, a number for itself
        full = [
            part if isinstance(part, th.Tensor) else th.full_like(getattr(batch, like), 1 if part is None else part)
            for part, batch in zip(parts, (first, second), strict=True)
        ]
        return th.cat(full)

    return Batch(
        observations=observations("observations"),
        actions=both("actions", "actions"),
        next_observations=observations("next_observations"),
        rewards=both("rewards", "rewards"),
        dones=both("dones", "dones"),
        discounts=both("discounts", "rewards"),
        valid=both("valid", "rewards"),
        in_episode=both("in_episode", "actions"),
    )
