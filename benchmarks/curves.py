"""The CSVs of `benchmarks/learning.py`, read back: one curve a run."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Curves = dict[tuple[str, str], dict[int, NDArray[np.float64]]]  # (task, algo) -> seed -> (evaluations, 2): step, value
RETURN, SUCCESS, STOCHASTIC = "deterministic_return", "success_rate", "stochastic_success_rate"


def read_curves(folder: Path, column: str = RETURN) -> Curves:
    """All runs below a folder of `<task>/<algo>/<seed>.csv`.

    :param folder: the folder
    :param column: which number is followed; runs without it are left out
    """
    curves: Curves = defaultdict(dict)
    for path in sorted(folder.glob("*/*/*.csv")):
        with open(path) as f:
            rows = {float(row["step"]): float(row[column]) for row in csv.DictReader(f) if row.get(column)}
        if rows:
            curves[path.parts[-3], path.parts[-2]][int(path.stem)] = np.asarray(sorted(rows.items()))
    return dict(curves)


def offline_steps(folder: Path) -> dict[str, int]:
    """Length of the offline phase of every task, 0 without one; it is in the settings beside the CSVs.

    Runs that are offline throughout do not count: they have no other phase.
    """
    steps: dict[str, int] = defaultdict(int)
    for path in folder.glob("*/*/*.jsonl"):
        settings = json.loads(path.read_text().splitlines()[-1])
        offline = settings["overrides"].get("offline_steps", 0)
        if offline < settings["steps"]:
            steps[path.parts[-3]] = max(steps[path.parts[-3]], offline)
    return steps


def finished(curves: Curves) -> Curves:
    """The runs that reached the last step of their task; a mean over runs of different lengths would mislead."""
    last: dict[str, float] = defaultdict(float)
    for (task, _), seeds in curves.items():
        last[task] = max(last[task], *(run[-1, 0] for run in seeds.values()))
    done = {key: {s: run for s, run in seeds.items() if run[-1, 0] == last[key[0]]} for key, seeds in curves.items()}
    return {key: seeds for key, seeds in done.items() if seeds}


def final_scores(curves: Curves) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Last values, algo -> task -> (seeds,), where 0 is the task's worst run and 1 its best."""
    scores: dict[str, dict[str, NDArray[np.float64]]] = defaultdict(dict)
    for task in {task for task, _ in curves}:
        final = {algo: np.array([run[-1, 1] for run in curves[t, algo].values()]) for t, algo in curves if t == task}
        low, high = np.min(np.concatenate([*final.values()])), np.max(np.concatenate([*final.values()]))
        for algo, values in final.items():
            scores[algo][task] = (values - low) / max(high - low, 1e-12)
    return scores
