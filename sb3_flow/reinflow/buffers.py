"""What one rollout was: single steps, of which those at which a chunk was decided are learned from.

Shapes: T steps of each environment, E environments, N decisions, K flow steps, D numbers in an action chunk.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_flow.datasets.observations import leaves, parts, whole

FloatArray = NDArray[np.float32]
Observations = NDArray[Any] | dict[str, NDArray[Any]]


class Decisions(NamedTuple):
    """States in which chunks were decided, how, and what came of it."""

    observations: PyTorchObs
    paths: th.Tensor  # (B, K + 1, D)
    old_log_prob: th.Tensor  # (B,) of the paths
    advantages: th.Tensor  # (B,)
    returns: th.Tensor  # (B,)


class PathRolloutBuffer(BaseBuffer):
    """A rollout whose actions are ends of paths, which are stored as a whole.

    :param n_steps: T
    :param observation_space: observation space
    :param action_space: action space
    :param device: of what is sampled
    :param gamma: discount factor of a single step
    :param gae_lambda: lambda of the advantages, of a decision
    :param n_envs: E
    :param path_shape: (K + 1, D)
    """

    def __init__(
        self,
        n_steps: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device,
        gamma: float,
        gae_lambda: float,
        n_envs: int,
        path_shape: tuple[int, int],
    ):
        super().__init__(n_steps, observation_space, action_space, device, n_envs)
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.path_shape = path_shape
        self.reset()

    def reset(self) -> None:
        super().reset()
        shape = (self.buffer_size, self.n_envs)
        shown = leaves(self.observation_space).items()
        # One array for every key of a Dict space; "" is that of an observation that is no Dict
        self.observations = {key: np.zeros((*shape, *get_obs_shape(leaf)), leaf.dtype) for key, leaf in shown}
        self.paths: FloatArray = np.zeros((*shape, *self.path_shape), np.float32)
        self.rewards: FloatArray = np.zeros(shape, np.float32)
        self.episode_starts: NDArray[np.bool_] = np.zeros(shape, np.bool_)
        self.decided: NDArray[np.bool_] = np.zeros(shape, np.bool_)
        # Of the decisions alone
        self.log_probs: FloatArray = np.zeros(0, np.float32)
        self.values: FloatArray = np.zeros(0, np.float32)
        self.advantages: FloatArray = np.zeros(0, np.float32)

    @property
    def returns(self) -> FloatArray:
        """What the values are fitted to, (N,)."""
        return self.advantages + self.values

    def add(
        self,
        observations: Observations,
        rewards: FloatArray,
        episode_starts: NDArray[np.bool_],
        decided: NDArray[np.bool_],
        paths: FloatArray,
    ) -> None:
        """Store one step of every environment.

        :param observations: before it, of E environments
        :param rewards: (E,)
        :param episode_starts: (E,) whether an episode began with it
        :param decided: (E,) whether a chunk was decided, and did not go on
        :param paths: (E, K + 1, D), which count where `decided`
        """
        for key, leaf in parts(observations).items():
            stored = self.observations[key]
            stored[self.pos] = np.reshape(leaf, stored.shape[1:])
        self.rewards[self.pos] = rewards
        self.episode_starts[self.pos] = episode_starts
        self.decided[self.pos] = decided
        self.paths[self.pos] = paths
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def __len__(self) -> int:
        """N."""
        return int(self.decided.sum())

    def decisions(self, rows: NDArray[np.integer[Any]]) -> tuple[PyTorchObs, th.Tensor]:
        """Observations and paths of some of the N decisions.

        :param rows: (B,) their numbers
        """
        steps, envs = (index[rows] for index in np.nonzero(self.decided))
        observations = {key: self.to_torch(values[steps, envs]) for key, values in self.observations.items()}
        return whole(observations), self.to_torch(self.paths[steps, envs])

    def finish(
        self, values: FloatArray, log_probs: FloatArray, last_values: FloatArray, dones: NDArray[np.bool_]
    ) -> None:
        """Compute advantages (GAE, arXiv 1506.02438) over decisions, from what the policy and V say of them.

        A chunk that an episode's end or the rollout's cut short counts as the shorter one that it was: what follows is
        worth the value of where it stopped.

        :param values: (N,) V of the states of the decisions
        :param log_probs: (N,) of the paths
        :param last_values: (E,) V of the states after the rollout
        :param dones: (E,) whether an episode ended with the rollout
        """
        self.values, self.log_probs = values, log_probs
        grid = np.zeros(self.decided.shape, np.float32)
        grid[self.decided] = values
        advantages = np.zeros_like(grid)
        # Of what follows a step: whether a decision does, its value and advantage, and of the chunk until then the
        # rewards and the discount
        decides = np.ones(self.n_envs, np.bool_)
        goes_on = ~dones
        next_value, next_advantage = last_values.astype(np.float32), np.zeros(self.n_envs, np.float32)
        rewards, discount = np.zeros((2, self.n_envs), np.float32)
        for t in reversed(range(self.buffer_size)):
            step = self.gamma * goes_on
            rewards = self.rewards[t] + step * np.where(decides, 0.0, rewards)
            discount = step * np.where(decides, 1.0, discount)
            advantage = rewards + discount * (next_value + self.gae_lambda * next_advantage) - grid[t]
            decides, goes_on = self.decided[t], ~self.episode_starts[t]
            advantages[t] = np.where(decides, advantage, 0.0)
            next_value = np.where(decides, grid[t], next_value)
            next_advantage = np.where(decides, advantage, next_advantage)
        self.advantages = advantages[self.decided]

    def batches(self, batch_size: int) -> Iterator[Decisions]:
        """Decisions in a random order, each at most once.

        :param batch_size: B; the last batch has at least half of it. Less is left out: chunks that an episode's end
            cuts short make a few decisions more than planned, and a step on these few would be as large as any
        """
        order = np.random.permutation(len(self))
        returns = self.returns
        batches = max(1, int(len(order) / batch_size + 0.5))
        for start in range(0, batches * batch_size, batch_size):
            rows = order[start : start + batch_size]
            numbers = (self.to_torch(array[rows]) for array in (self.log_probs, self.advantages, returns))
            yield Decisions(*self.decisions(rows), *numbers)

    def _get_samples(self, batch_inds: NDArray[Any], env: Any = None) -> Any:
        raise NotImplementedError("use `batches`")
