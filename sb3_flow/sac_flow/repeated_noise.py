"""Exploration noise that an environment keeps for several steps, so that it pushes one way for longer."""

from functools import cache

import numpy as np
import torch as th
from numpy.typing import NDArray

EXPONENT = 2.0  # of the zeta distribution (FlashSAC, configs/agent/flashSAC.yaml)


@cache
def repeat_probs(longest: int) -> NDArray[np.float64]:
    """Probabilities of 1, ..., `longest` steps: `n^-2`, cut off and normalised.

    :param longest: >= 1
    """
    weights = np.arange(1, longest + 1) ** -EXPONENT
    return np.asarray(weights / weights.sum())


class RepeatedNoise:
    """The noise that every environment acts with, and for how many steps more.

    FlashSAC (flash_rl/agents/flashSAC/agent.py) has one count for all environments, and goes on over episodes' ends.
    """

    def __init__(self) -> None:
        self.noise = np.empty((0, 0, 0), np.float32)  # (K + 1, n, D)
        self.left = np.empty(0, np.int64)  # (n,)

    def next(self, fresh: th.Tensor, starts: NDArray[np.bool_], longest: int) -> th.Tensor:
        """Noise of the next step, (K + 1, n, D): what is kept, and fresh noise where none is.

        :param fresh: (K + 1, n, D)
        :param starts: (n,) where an episode begins
        :param longest: a draw is kept for up to so many steps
        """
        if self.noise.shape != fresh.shape:
            self.noise, self.left = np.zeros(fresh.shape, np.float32), np.zeros(fresh.shape[1], np.int64)
        renewed = starts.astype(np.bool_) | (self.left == 0)
        self.noise[:, renewed] = fresh.cpu().numpy()[:, renewed]
        self.left[renewed] = 1 + np.random.choice(longest, renewed.sum(), p=repeat_probs(longest))
        self.left -= 1
        return th.tensor(self.noise, device=fresh.device)
