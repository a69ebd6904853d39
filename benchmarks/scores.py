"""What rliable makes of a few runs: IQM, performance profiles, probability of improvement, all with 95 % CI."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    from rliable import library, metrics
except ImportError:
    raise SystemExit("tables and figures need rliable: pip install 'sb3_flow[plots]'") from None

REPS = 5_000
Scores = dict[str, dict[str, NDArray[np.float64]]]  # of `curves.final_scores`: algo -> task -> (seeds,)


class Estimate(NamedTuple):
    """A number and its 95 % CI."""

    value: float
    low: float
    high: float


@contextmanager
def _seeded() -> Iterator[None]:
    """The same draws every time: rliable 1.2 takes a random_state, but resamples with NumPy's global generator."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def mean(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds, for every evaluation. (seeds, evaluations) -> (e,)."""
    return np.asarray(runs.mean(axis=0))


def iqm(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds without the best and the worst quarter, for every evaluation. (seeds, evaluations) -> (e,)."""
    # rliable's aggregate_iqm takes one evaluation at a time: 40 s for a curve of a hundred with its CI
    cut = len(runs) // 4
    return mean(np.sort(runs, axis=0)[cut : len(runs) - cut])


@_seeded()
def curve_and_ci(
    runs: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`mean` or `iqm` of the runs and its bootstrapped 95 % CI. (seeds, evaluations) -> (e,), (2, e)."""
    points, intervals = library.get_interval_estimates({"x": runs}, statistic, reps=REPS)
    return points["x"], intervals["x"]


@_seeded()
def iqm_and_ci(final: NDArray[np.float64]) -> Estimate:
    """IQM of the final returns and its stratified-bootstrap 95 % CI. (seeds,)."""
    points, intervals = library.get_interval_estimates(
        {"x": final[:, None]}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=REPS
    )
    return Estimate(float(points["x"][0]), float(intervals["x"][0, 0]), float(intervals["x"][1, 0]))


@_seeded()
def profiles(
    scores: Scores, thresholds: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Share of runs whose score is above each threshold, (n,), and its CI, (2, n), for every algorithm.

    :param scores: of `curves.final_scores`; what counts are the tasks that all algorithms have, at least one
    :param thresholds: (n,)
    """
    tasks = shared_tasks(scores)
    matrices = {algo: _matrix(scores[algo], tasks) for algo in scores}
    values, intervals = library.create_performance_profile(matrices, thresholds, reps=REPS // 10)
    return {algo: (values[algo], intervals[algo]) for algo in matrices}


def shared_tasks(scores: Scores) -> set[str]:
    """The tasks that all algorithms have."""
    return set.intersection(*(set(tasks) for tasks in scores.values()))


@_seeded()
def improvement(scores: Scores, ours: str, baseline: str) -> Estimate | None:
    """Probability that a run of one algorithm beats one of another, over the tasks that both have; None without any.

    :param scores: of `curves.final_scores`
    :param ours: the algorithm that should win
    :param baseline: the other
    """
    tasks = set(scores[ours]) & set(scores[baseline])
    if not tasks:
        return None
    pair = (_matrix(scores[ours], tasks), _matrix(scores[baseline], tasks))
    points, intervals = library.get_interval_estimates({"x": pair}, metrics.probability_of_improvement, reps=REPS)
    return Estimate(float(points["x"]), float(intervals["x"][0]), float(intervals["x"][1]))


def _matrix(scores: dict[str, NDArray[np.float64]], tasks: set[str]) -> NDArray[np.float64]:
    """(seeds, tasks); of a task with more seeds than another the first ones."""
    seeds = min(len(scores[task]) for task in tasks)
    return np.stack([scores[task][:seeds] for task in sorted(tasks)], axis=1)
