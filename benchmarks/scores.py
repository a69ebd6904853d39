"""What a few runs say: IQM, performance profiles, probability of improvement, with 95 % CI where runs suffice.

The estimators of Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (arXiv
2108.13264), with the same draws as its authors' rliable, whose dependency arch cannot be imported beside pandas 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REPS = 5_000
CI = (2.5, 97.5)  # percentiles
FEWEST = 4  # runs: resampled, three are all the lowest, or the highest, in 3.7 % of cases each

Array = NDArray[np.float64]
Scores = dict[str, dict[str, Array]]  # of `curves.final_scores`: algo -> task -> (seeds,)


class Estimate(NamedTuple):
    """A number and its 95 % CI."""

    value: float
    low: float
    high: float


def _generator() -> np.random.RandomState:
    """The same draws every time, and those of rliable after `np.random.seed(0)`."""
    return np.random.RandomState(0)


def bootstrap_ci(
    statistic: Callable[..., Array | np.float64], *scores: Array, generator: np.random.RandomState, reps: int
) -> Array:
    """Stratified bootstrap: percentiles of a statistic over resampled seeds, drawn anew for every column. (2, ...).

    :param statistic: of as many matrices as there are in `scores`
    :param scores: (seeds, columns) each
    :param generator: of the draws
    :param reps: how often
    """

    def resampled(runs: Array) -> Array:
        return np.take_along_axis(runs, generator.choice(len(runs), runs.shape), axis=0)

    values = [statistic(*(resampled(runs) for runs in scores)) for _ in range(reps)]
    return np.asarray(np.percentile(values, CI, axis=0))


def mean(runs: Array) -> Array:
    """Mean over seeds, for every evaluation. (seeds, evaluations) -> (e,)."""
    return np.asarray(runs.mean(axis=0))


def iqm(runs: Array) -> Array:
    """Mean over seeds without the best and the worst quarter, for every evaluation. (seeds, evaluations) -> (e,)."""
    cut = len(runs) // 4
    return mean(np.sort(runs, axis=0)[cut : len(runs) - cut])


def median_and_ci(values: Array) -> Estimate:
    """The median of some numbers and its bootstrapped 95 % CI. (n,)."""
    return _estimate(values, lambda runs: np.asarray(np.median(runs, axis=0)))


def curve_and_ci(runs: Array, statistic: Callable[[Array], Array]) -> tuple[Array, Array]:
    """`mean` or `iqm` of the runs and its bootstrapped 95 % CI. (seeds, evaluations) -> (e,), (2, e)."""
    return statistic(runs), bootstrap_ci(statistic, runs, generator=_generator(), reps=REPS)


def iqm_and_ci(final: Array) -> Estimate:
    """IQM of the final returns and its stratified-bootstrap 95 % CI. (seeds,)."""
    return _estimate(final, iqm)


def _estimate(values: Array, statistic: Callable[[Array], Array]) -> Estimate:
    value, ends = curve_and_ci(values[:, None], statistic)
    return Estimate(float(value[0]), float(ends[0, 0]), float(ends[1, 0]))


def profiles(scores: Scores, thresholds: Array) -> dict[str, tuple[Array, Array]]:
    """Share of runs whose score is above each threshold, (n,), and its CI, (2, n), for every algorithm.

    :param scores: of `curves.final_scores`; what counts are the tasks that all algorithms have, at least one
    :param thresholds: (n,)
    """

    def profile(*matrices: Array) -> Array:
        above = [(runs[..., None] > thresholds).mean(axis=0) for runs in matrices]  # (seeds, tasks, n) -> (tasks, n)
        return mean(np.concatenate(above))

    tasks, generator = shared_tasks(scores), _generator()
    matrices = {algo: _matrices(tasks, scores[algo]) for algo in scores}
    return {
        algo: (profile(*runs), bootstrap_ci(profile, *runs, generator=generator, reps=REPS // 10))
        for algo, runs in matrices.items()
    }


def shared_tasks(scores: Scores) -> set[str]:
    """The tasks that all algorithms have."""
    return set.intersection(*(set(tasks) for tasks in scores.values()))


def improvement(scores: Scores, ours: str, baseline: str) -> Estimate | None:
    """Probability that a run of one algorithm beats one of another, over the tasks that both have; None without any.

    Every task counts alike, whatever its number of seeds. Few runs have no interval: it is NaN then.

    :param scores: of `curves.final_scores`
    :param ours: the algorithm that should win
    :param baseline: the other
    """
    tasks = set(scores[ours]) & set(scores[baseline])
    if not tasks:
        return None
    pair = _matrices(tasks, scores[ours], scores[baseline])
    value, ends = _probability_of_improvement(*pair), np.full(2, np.nan)
    if all(_has_interval([scores[algo][task] for task in tasks]) for algo in (ours, baseline)):
        ends = bootstrap_ci(_probability_of_improvement, *pair, generator=_generator(), reps=REPS)
    return Estimate(float(value), float(ends[0]), float(ends[1]))


def _has_interval(runs: list[Array]) -> bool:
    """Whether there is enough to draw from: of one seed a task all draws are alike, of three in all most."""
    seeds = sum(map(len, runs))
    return seeds >= FEWEST and seeds >= 2 * len(runs)


def _probability_of_improvement(*matrices: Array) -> np.float64:
    """Share of pairs of runs of one task that the first wins, a tie for half; its mean over tasks.

    :param matrices: of `_matrices`, of two algorithms: (n, tasks), (m, tasks), and so on
    """
    won = [
        np.heaviside(ours[:, None] - baseline[None], 0.5).mean(axis=(0, 1))  # (n, m, tasks) -> (tasks,)
        for ours, baseline in zip(matrices[::2], matrices[1::2], strict=True)
    ]
    return np.float64(np.concatenate(won).mean())


def _matrices(tasks: set[str], *algos: dict[str, Array]) -> list[Array]:
    """(seeds, tasks) of each algorithm for the tasks with as many seeds, then for those with another number."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for task in sorted(tasks):
        alike.setdefault(tuple(len(scores[task]) for scores in algos), []).append(task)
    return [np.stack([scores[task] for task in group], axis=1) for group in alike.values() for scores in algos]
