"""What rewards are divided by so that returns fit the support of a categorical critic."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RewardScale:
    """`max(std R, max |R| / bound)` over all steps seen, with R_t = gamma R_(t-1) + r_t from 0 in every episode.

    As in XQC, SimbaV2 and FlashSAC. The scale of rewards cancels exactly, and no return seen is beyond the bound. It
    knows rewards as the environment gave them: what `VecNormalize` makes of them has another scale at every step.

    :param bound: of the critic's support
    """

    def __init__(self, bound: float):
        self.bound = bound
        self.running: NDArray[np.float64] = np.zeros(0)  # R of every environment
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of (R - mean)^2
        self.highest = 0.0  # |R|

    @property
    def value(self) -> float:
        """The divisor; 1 as long as every return is 0."""
        std = math.sqrt(self.squares / self.count) if self.count > 0 else 0.0
        return max(std, self.highest / self.bound) or 1.0

    def begin(self, n_envs: int) -> None:
        """Begin an episode in each of n environments."""
        self.running = np.zeros(n_envs)

    def step(self, rewards: NDArray[Any], dones: NDArray[Any], gamma: float) -> None:
        """See one step of every environment.

        :param rewards: (n_envs,)
        :param dones: (n_envs,) whether the episode ended, terminated or not
        :param gamma: discount of a single step
        """
        self.running = gamma * self.running + rewards.astype(np.float64)
        self.see(self.running)
        self.running = np.where(dones, 0.0, self.running)

    def see(self, returns: NDArray[np.float64]) -> None:
        """Take running returns into the statistics.

        :param returns: (n,); training stops where a batch has what is not finite, so that it is left out here
        """
        returns = returns[np.isfinite(returns)]
        if returns.size == 0:
            return
        total = self.count + returns.size
        delta = float(returns.mean()) - self.mean
        # Chan et al.'s update of a mean and a sum of squares by those of a batch
        self.squares += float(np.square(returns - returns.mean()).sum())
        self.squares += delta**2 * self.count * returns.size / total
        self.mean += delta * returns.size / total
        self.count = total
        self.highest = max(self.highest, float(np.abs(returns).max()))
