"""What was understood of data, to be looked at before anything is trained on them."""

import numpy as np
from numpy.typing import NDArray

from sb3_flow.datasets.arrays import Array, blocks
from sb3_flow.datasets.dataset import Dataset
from sb3_flow.datasets.observations import full_name, parts


def describe(dataset: Dataset) -> str:
    """A few lines on episodes, how they end, and the ranges of all numbers.

    :param dataset: of several files the one whose turn it is first
    """
    data = dataset.at(0)
    rows = data.rows(np.arange(len(data)))
    ends, terminal = data.ends[rows], data.masks[rows] == 0
    bounds = np.append(0, np.flatnonzero(ends) + 1)
    returns = np.add.reduceat(data.rewards[rows], bounds[:-1])
    solved = f"{int((terminal & ends).sum())} of {len(returns)} end in a terminal state"
    observations = parts(data.observations).items()
    lines = [
        str(dataset),
        f"episodes: {_span(np.diff(bounds))} steps; {solved}",
        *(f"{full_name('observations', key)}: {part.dtype}, {_range(part)}" for key, part in observations),
        f"actions: {_range(data.actions[rows])}",
        f"rewards: {_range(data.rewards[rows])}; an episode's sum {_span(returns)}, {returns.mean():g} in the mean",
    ]
    before = int((terminal & ~ends).sum())
    if before > 0:
        lines.append(f"terminal steps after which the episode goes on, as in play data: {before}")
    return "\n".join(lines)


def _range(array: Array) -> str:
    lowest, highest = np.inf, -np.inf
    for _, block in blocks(array):
        lowest, highest = min(lowest, block.min()), max(highest, block.max())
    return f"{lowest:g} to {highest:g}"


def _span(numbers: NDArray[np.generic]) -> str:
    return f"{numbers.min():g} to {numbers.max():g}"
