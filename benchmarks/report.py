"""Tables and figures of learning curves: mean over time, IQM of the last evaluation.

With 95 % CI; fewer than four seeds have their range instead (of the profiles, percentiles of what is drawn anew from
them). The table has the mean of the last five evaluations as
well: where a policy falls now and then, one evaluation is luck.

    python benchmarks/report.py benchmarks/results/learning --figure docs/images/learning.png
    python benchmarks/report.py benchmarks/results/offline --metric success --figure docs/images/offline.png

From four seeds on, where it is no longer the mean, the IQM over time has a figure too. With several algorithms there
are two figures more: performance profiles, and the probability that a run of ours beats one of each baseline. All are
named after the first.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from curves import (
    RETURN,
    STOCHASTIC,
    STOCHASTIC_RETURN,
    SUCCESS,
    Curves,
    differing_settings,
    final_scores,
    finished,
    left_out,
    offline_steps,
    read_curves,
)
from figures import LABELS, in_order, plot_curves, plot_improvement, plot_profiles
from records import BASELINES, machine
from scores import FEWEST, improvement, iqm_and_ci, shared_tasks


class Metric(NamedTuple):
    """What a report is about."""

    column: str  # of the CSVs
    name: str
    digits: int  # behind the point
    limits: tuple[float, float] | None


METRICS = {
    "return": Metric(RETURN, "evaluation return", 0, None),
    "success": Metric(SUCCESS, "success rate", 2, (0, 1)),
    "stochastic_return": Metric(STOCHASTIC_RETURN, "return of the stochastic policy", 0, None),
    "stochastic_success": Metric(STOCHASTIC, "success rate of the stochastic policy", 2, (0, 1)),
}
FINAL = ["final_iqm", "ci_low", "ci_high", "final_lowest", "final_highest", "final_mean", "last_five_mean"]
SUMMARY = ["task", "algo", "seeds", "steps", *FINAL]


def write_summary(curves: Curves, path: Path, digits: int) -> None:
    """Print the table of the last evaluations, and write it as CSV; few seeds have no interval there.

    :param curves: the runs
    :param path: of the CSV
    :param digits: behind the point
    """
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(SUMMARY)
        for (task, algo), seeds in sorted(curves.items()):
            final = np.array([run[-1, 1] for run in seeds.values()])
            last_five = np.mean([run[-5:, 1].mean() for run in seeds.values()])
            iqm, *interval = iqm_and_ci(final)
            interval = interval if len(final) >= FEWEST else [np.nan] * 2
            values = (iqm, *interval, final.min(), final.max(), final.mean(), last_five)
            row = ["" if np.isnan(value) else f"{value:.{digits}f}" for value in values]
            steps = int(next(iter(seeds.values()))[-1, 0])
            writer.writerow([task, algo, " ".join(map(str, sorted(seeds))), steps, *row])
    print(path.read_text())


def compare(curves: Curves, path: Path) -> list[Path]:
    """Performance profiles, and probability of improvement of all others over each baseline that is there.

    :param curves: the runs
    :param path: of the figure of the curves; these are named after it
    :return: the figures
    """
    scores = final_scores(curves)
    algos = in_order(scores)
    if len(algos) < 2:
        return []
    figures = []
    shared = shared_tasks(scores)
    left_out = sorted(set().union(*scores.values()) - shared)
    for task in left_out:
        lacking = ", ".join(algo for algo in algos if task not in scores[algo])
        print(f"The profiles leave out {task}, which {lacking} lack{'s' if ',' not in lacking else ''}")
    if shared:
        figures.append(path.with_stem(f"{path.stem}_profiles"))
        plot_profiles(scores, figures[-1])
    pairs = [(ours, baseline) for baseline in BASELINES if baseline in algos for ours in algos if ours not in BASELINES]
    found = {pair: improvement(scores, *pair) for pair in pairs}
    estimates = {pair: estimate for pair, estimate in found.items() if estimate is not None}
    for (ours, baseline), estimate in estimates.items():
        known = np.isfinite(estimate.low)
        interval = f"{estimate.low:.2f} - {estimate.high:.2f}" if known else "too few runs for an interval"
        print(f"P({ours} > {baseline}) = {estimate.value:.2f} ({interval})")
    if estimates:
        figures.append(path.with_stem(f"{path.stem}_improvement"))
        plot_improvement(estimates, figures[-1])
    return figures


def check_comparable(curves: Curves, results: Path) -> None:
    """Refuse what no figure can show.

    :param curves: the runs
    :param results: their folder
    :raises SystemExit: for a folder that no algorithm made, and for seeds that were evaluated at different steps, or
        trained with different settings
    """
    for (task, algo), seeds in curves.items():
        folder = results / task / algo
        if algo.partition("+")[0] not in LABELS:
            raise SystemExit(
                f"{folder}: there is no algorithm {algo!r}, only {', '.join(LABELS)}, and these with +LABEL"
            )
        if len({tuple(run[:, 0]) for run in seeds.values()}) > 1:
            raise SystemExit(f"{folder}: its seeds were evaluated at different steps; keep those alike in one folder")
        differing = differing_settings(folder, seeds)
        if differing:
            raise SystemExit(f"{folder}: its seeds differ in {', '.join(differing)}; keep those alike in one folder")


def report(results: Path, figure: Path, metric: str = "return") -> Curves:
    """Write the summary and the figures of a folder of results.

    :param results: the folder
    :param figure: of the curves
    :param metric: of `METRICS`
    :return: the runs that are finished
    :raises SystemExit: if there are none, and see `check_comparable`
    """
    column, ylabel, digits, limits = METRICS[metric]
    read = read_curves(results, column)
    curves = finished(read, results)
    begun = left_out(read, curves)
    if not curves:
        why = f"begun are {', '.join(begun)}" if begun else "benchmarks/learning.py makes them"
        raise SystemExit(f"{results} has no finished runs with a {column}: {why}")
    check_comparable(curves, results)
    for run in begun:
        print(f"left out, as it is not finished: {run}")
    write_summary(curves, results / "summary.csv", digits)
    offline = offline_steps(results)
    plot_curves(curves, figure, ylabel, offline, limits=limits)
    figures = [figure]
    if any(len(seeds) >= 4 for seeds in curves.values()):
        figures.append(figure.with_stem(f"{figure.stem}_iqm"))
        plot_curves(curves, figures[-1], ylabel, offline, "IQM", limits)
    for path in [*figures, *compare(curves, figure)]:
        print(path)
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--metric", choices=METRICS, default="return")
    args = parser.parse_args()
    report(args.results, args.figure, args.metric)
    print(machine())


if __name__ == "__main__":
    main()
