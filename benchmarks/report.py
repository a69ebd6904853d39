"""Tables and figures of the learning curves: mean with 95 % CI over time, IQM with 95 % CI of the last evaluation.

python benchmarks/report.py benchmarks/results/learning --figure docs/images/learning.png
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from machine import machine
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rliable import library, metrics

Curves = dict[tuple[str, str], dict[int, NDArray[np.float64]]]  # (task, algo) -> seed -> (evaluations, 2): step, return

LABELS = {
    "flow_t": "SAC Flow-T",
    "flow_g": "SAC Flow-G",
    "flow_mlp": "SAC Flow, plain MLP",
    "crossq": "CrossQ",
    "sac": "SAC",
}
COLORS = {"flow_t": "#0b6e99", "flow_g": "#2a9d5c", "flow_mlp": "#9467bd", "crossq": "#d1495b", "sac": "#8d8d8d"}
REPS = 5_000


def read_curves(folder: Path) -> Curves:
    """All runs below a folder of `<task>/<algo>/<seed>.csv`."""
    curves: Curves = defaultdict(dict)
    for path in sorted(folder.glob("*/*/*.csv")):
        with open(path) as f:
            rows = {float(row["step"]): float(row["deterministic_return"]) for row in csv.DictReader(f)}
        curves[path.parts[-3], path.parts[-2]][int(path.stem)] = np.asarray(sorted(rows.items()))
    return curves


def finished(curves: Curves) -> Curves:
    """The runs that reached the last step of their task; a mean over runs of different lengths would mislead."""
    last: dict[str, float] = defaultdict(float)
    for (task, _), seeds in curves.items():
        last[task] = max(last[task], *(run[-1, 0] for run in seeds.values()))
    done = {key: {s: run for s, run in seeds.items() if run[-1, 0] == last[key[0]]} for key, seeds in curves.items()}
    return {key: seeds for key, seeds in done.items() if seeds}


def mean_and_ci(returns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over seeds and its bootstrapped 95 % CI, for every evaluation. (seeds, evaluations) -> (e,), (2, e)."""
    points, intervals = library.get_interval_estimates(
        {"x": returns}, lambda scores: np.mean(scores, axis=0), reps=REPS, random_state=np.random.RandomState(0)
    )
    return points["x"], intervals["x"]


def iqm_and_ci(final: NDArray[np.float64]) -> tuple[float, float, float]:
    """IQM of the final returns and its stratified-bootstrap 95 % CI. (seeds,)."""
    points, intervals = library.get_interval_estimates(
        {"x": final[:, None]},
        lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=REPS,
        random_state=np.random.RandomState(0),
    )
    return float(points["x"][0]), float(intervals["x"][0, 0]), float(intervals["x"][1, 0])


def write_summary(curves: Curves, path: Path) -> None:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["task", "algo", "seeds", "steps", "final_iqm", "ci_low", "ci_high", "final_mean"])
        for (task, algo), seeds in sorted(curves.items()):
            final = np.array([run[-1, 1] for run in seeds.values()])
            row = [f"{value:.0f}" for value in iqm_and_ci(final)]
            steps = int(next(iter(seeds.values()))[-1, 0])
            writer.writerow([task, algo, " ".join(map(str, sorted(seeds))), steps, *row, f"{final.mean():.0f}"])
    print(path.read_text())


def plot(curves: Curves, path: Path) -> None:
    tasks = sorted({task for task, _ in curves})
    figure = Figure(figsize=(4.4 * len(tasks), 3.6), layout="constrained")
    for axes, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        for algo in [algo for algo in LABELS if (task, algo) in curves]:
            seeds = curves[task, algo]
            steps = next(iter(seeds.values()))[:, 0] / 1000
            mean, (low, high) = mean_and_ci(np.stack([run[:, 1] for run in seeds.values()]))
            axes.plot(steps, mean, label=f"{LABELS[algo]} ({len(seeds)} seeds)", color=COLORS[algo])
            axes.fill_between(steps, low, high, color=COLORS[algo], alpha=0.18, lw=0)
        axes.set(title=task, xlabel="environment steps (thousands)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    figure.axes[0].set_ylabel("evaluation return")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--figure", type=Path, required=True)
    args = parser.parse_args()
    curves = finished(read_curves(args.results))
    write_summary(curves, args.results / "summary.csv")
    plot(curves, args.figure)
    print(f"{args.figure}\n{machine()}")


if __name__ == "__main__":
    main()
