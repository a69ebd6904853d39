"""What SB3's callbacks do not know of an offline phase."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback, ProgressBarCallback


def correct_progress_bars(callback: BaseCallback, steps: int) -> None:
    """Move progress bars by some steps more, or fewer: SB3's advance by the number of environments at every call.

    :param callback: whose bars, or whose children's, are moved
    :param steps: by how much; 0 for not at all
    """
    if steps != 0:
        for bar in _progress_bars(callback):
            bar.pbar.update(steps)


def _progress_bars(callback: BaseCallback) -> Iterator[ProgressBarCallback]:
    if isinstance(callback, ProgressBarCallback):
        yield callback
    elif isinstance(callback, CallbackList):
        for child in callback.callbacks:
            yield from _progress_bars(child)
    elif isinstance(callback, EventCallback) and callback.callback is not None:
        yield from _progress_bars(callback.callback)


def no_steps(n_envs: int) -> dict[str, Any]:
    """What callbacks read of the environments' steps, where none was made: no reward, and no episode ended."""
    return {
        "rewards": np.zeros(n_envs, np.float32),
        "dones": np.zeros(n_envs, np.bool_),
        "infos": [{} for _ in range(n_envs)],
    }
