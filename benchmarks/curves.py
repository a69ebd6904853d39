"""The CSVs of `benchmarks/learning.py`, read back: one curve a run."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from records import read_records, what_counts

Curves = dict[tuple[str, str], dict[int, NDArray[np.float64]]]  # (task, algo) -> seed -> (evaluations, 2): step, value
RETURN, SUCCESS, STOCHASTIC = "deterministic_return", "success_rate", "stochastic_success_rate"
STOCHASTIC_RETURN = "stochastic_return"


def read_curves(folder: Path, column: str = RETURN) -> Curves:
    """All runs below a folder of `<task>/<algo>/<seed>.csv`.

    :param folder: the folder
    :param column: which number is followed; runs without it are left out
    """
    curves: Curves = defaultdict(dict)
    for path in sorted(folder.glob("*/*/*.csv"), key=lambda path: (path.parent, int(path.stem))):
        with open(path) as f:
            rows = {float(row["step"]): float(row[column]) for row in csv.DictReader(f) if row.get(column)}
        if rows:
            curves[path.parts[-3], path.parts[-2]][int(path.stem)] = np.asarray(sorted(rows.items()))
    return dict(curves)


def offline_steps(folder: Path) -> dict[tuple[str, str], int]:
    """Length of the offline phase by task and algorithm, 0 without one; it is in the settings beside the CSVs.

    Runs that are offline throughout do not count: they have no other phase.
    """
    steps: dict[tuple[str, str], int] = defaultdict(int)
    for (task, algo, _), settings in _settings(folder).items():
        offline = settings["overrides"].get("offline_steps", 0)
        if offline < settings["steps"]:
            steps[task, algo] = max(steps[task, algo], offline)
    return steps


def finished(curves: Curves, folder: Path) -> Curves:
    """The runs that reached their last step; a mean over seeds of different lengths would mislead.

    Algorithms may have different numbers of steps: on-policy ones take many times as many.

    :param curves: the runs
    :param folder: where they were read; beside the CSVs stands how long they should be
    """
    planned = {run: settings["steps"] for run, settings in _settings(folder).items()}
    done: Curves = {}
    for key, seeds in curves.items():
        longest = max(run[-1, 0] for run in seeds.values())
        whole = {
            seed: run for seed, run in seeds.items() if run[-1, 0] == planned.get((*key, seed), longest) == longest
        }
        if whole:
            done[key] = whole
    return done


def differing_settings(folder: Path, seeds: Iterable[int]) -> list[str]:
    """Names of the settings in which an algorithm's runs on a task differ, but for those that leave numbers alone.

    :param folder: with the records of the runs
    :param seeds: of the runs
    """
    records = [folder / f"{seed}.jsonl" for seed in seeds]
    settings = [what_counts(read_records(path)[-1]) for path in records if path.exists()]
    for each in settings:
        each["overrides"].pop("compile", None)
    names = {name for each in settings for name in each} - {"seed"}
    return sorted(name for name in names if any(each.get(name) != settings[0].get(name) for each in settings))


def left_out(curves: Curves, done: Curves) -> list[str]:
    """Names of the runs that are not finished, with their last step."""
    return [
        f"{task} {algo} seed {seed} ({run[-1, 0]:,.0f} steps)"
        for (task, algo), seeds in curves.items()
        for seed, run in seeds.items()
        if seed not in done.get((task, algo), {})
    ]


def _settings(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Those of every run, (task, algorithm, seed), as it was last begun."""
    paths = sorted(folder.glob("*/*/*.jsonl"))
    return {(path.parts[-3], path.parts[-2], int(path.stem)): read_records(path)[-1] for path in paths}


def final_scores(curves: Curves) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Last values, algo -> task -> (seeds,), where 0 is the task's worst run and 1 its best."""
    scores: dict[str, dict[str, NDArray[np.float64]]] = defaultdict(dict)
    for task in {task for task, _ in curves}:
        final = {algo: np.array([run[-1, 1] for run in curves[t, algo].values()]) for t, algo in curves if t == task}
        low, high = np.min(np.concatenate([*final.values()])), np.max(np.concatenate([*final.values()]))
        for algo, values in final.items():
            scores[algo][task] = (values - low) / max(high - low, 1e-12)
    return scores
