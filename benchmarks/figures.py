"""Figures of learning curves and of what they end at."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from curves import Curves
from scores import FEWEST, Estimate, Scores, curve_and_ci, iqm, iqm_and_ci, mean, profiles

from sb3_flow.common.checks import extra

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:
    raise SystemExit(f"figures need matplotlib: {extra('plots')}") from None

LABELS = {
    "flow_t": "SAC Flow-T",
    "flow_t+free": "SAC Flow-T, β = 0",
    "flow_t+beta10": "SAC Flow-T, β = 10",
    "flow_t+beta30": "SAC Flow-T, β = 30",
    "flow_t+raw": "SAC Flow-T, raw target",
    "flow_t+masked": "SAC Flow-T, terminations masked",
    "flow_t+behavior": "SAC Flow-T, behaviour flow",
    "flow_t+mixed": "SAC Flow-T, half data",
    "flow_t+half": "SAC Flow-T, target entropy -D/2",
    "flow_t+ten": "SAC Flow-T, ten critics",
    "flow_t+behavior+ten": "SAC Flow-T, behaviour flow, ten critics",
    "flow_t+alpha": "SAC Flow-T, learned temperature",
    "flow_g": "SAC Flow-G",
    "flow_mlp": "SAC Flow, plain MLP",
    "flow_t_categorical": "SAC Flow-T, categorical critic",
    "flow_t_xqc": "SAC Flow-T, XQC's critic",
    "flow_t_flashsac": "SAC Flow-T, FlashSAC's critic",
    "gaussian": "Gaussian",
    "gaussian_categorical": "Gaussian, categorical critic",
    "gaussian_xqc": "Gaussian, XQC's critic",
    "gaussian_flashsac": "Gaussian, FlashSAC's critic",
    "cloning": "Flow-T, cloning alone",
    "dime": "DIME",
    "fql": "FQL",
    "qc_fql": "QC-FQL",
    "qc_fql+ten": "QC-FQL, ten critics",
    "qc": "QC",
    "flow_rl": "FlowRL",
    "qsm": "QSM",
    "reinflow": "ReinFlow",
    "crossq": "CrossQ",
    "sac": "SAC",
    "ppo": "PPO",
}
COLORS = {
    "flow_t": "#0b6e99",
    "flow_g": "#2a9d5c",
    "flow_mlp": "#9467bd",
    "flow_t_categorical": "#00429d",
    "flow_t_xqc": "#17becf",
    "flow_t_flashsac": "#1b9e77",
    "gaussian": "#555555",
    "gaussian_categorical": "#8c564b",
    "gaussian_xqc": "#bcbd22",
    "gaussian_flashsac": "#a6761d",
    "cloning": "#c98a1b",
    "dime": "#f28e2b",
    "fql": "#e377c2",
    "qc_fql": "#d1495b",
    "qc": "#7f3b08",
    "flow_rl": "#6a3d9a",
    "qsm": "#b8860b",
    "reinflow": "#17becf",
    "crossq": "#d1495b",
    "sac": "#8d8d8d",
    "ppo": "#4d4d4d",
}


def label(algo: str) -> str:
    """What an algorithm is called in a figure; behind a "+" stands a variant."""
    name, _, variant = algo.partition("+")
    return LABELS[algo] if algo in LABELS else f"{LABELS[name]}, {variant}"


def colors(algos: list[str]) -> dict[str, str]:
    """One colour an algorithm: its own, and for variants one of a range."""
    variants = [algo for algo in algos if "+" in algo]
    ramp = matplotlib.colormaps["plasma"](0.85 * (np.arange(len(variants)) + 0.5) / max(len(variants), 1))
    chosen = {algo: matplotlib.colors.to_hex(color) for algo, color in zip(variants, ramp, strict=False)}
    return {algo: chosen.get(algo) or COLORS[algo] for algo in algos}


def in_order(algos: Iterable[str]) -> list[str]:
    """Algorithms in the order of `LABELS`, each once; K10 comes after K7."""
    known = list(LABELS)
    return sorted(set(algos), key=lambda algo: (known.index(algo.split("+")[0]), len(algo), algo))


def plot_curves(
    curves: Curves,
    path: Path,
    ylabel: str,
    offline: Mapping[tuple[str, str], int] | None = None,
    statistic: Literal["mean", "IQM"] = "mean",
    limits: tuple[float, float] | None = None,
) -> None:
    """One panel a task: mean or IQM over seeds and its 95 % CI, which of fewer than four seeds is their range.

    :param curves: the runs, all of a task with the same evaluations
    :param path: of the picture
    :param ylabel: what is shown
    :param offline: length of the offline phase by task and algorithm; the longest is shaded, the end of others dotted
    :param statistic: "mean" or "IQM", which is the mean where there are fewer than four seeds
    :param limits: of what is shown, if it has some
    """
    over_seeds = {"mean": mean, "IQM": iqm}[statistic]
    tasks = sorted({task for task, _ in curves})
    algos = in_order(algo for _, algo in curves)
    rows = -(-len(tasks) // 4)
    columns = -(-len(tasks) // rows)
    # Long legends of few panels would reach into each other, and out of the picture
    width = {1: 6.6, 2: 6.6, 3: 5.2}.get(columns, 4.4) if len(algos) > 4 else 4.4
    figure = Figure(figsize=(width * columns, 4.0 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).flatten()
    for axes, task in zip(panels, tasks, strict=False):
        for algo in [algo for algo in algos if (task, algo) in curves]:
            seeds = curves[task, algo]
            steps = next(iter(seeds.values()))[:, 0] / 1000
            values, (low, high) = curve_and_ci(np.stack([run[:, 1] for run in seeds.values()]), over_seeds)
            color = colors(algos)[algo]
            number = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            axes.plot(steps, values, label=f"{label(algo)} ({number})", color=color)
            axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
        phases = {algo: (offline or {}).get((task, algo), 0) / 1000 for algo in algos if (task, algo) in curves}
        length = max(phases.values())
        for algo, end in phases.items():
            if 0 < end < length:
                axes.axvline(end, color=colors(algos)[algo], ls=":", lw=1)
        if length:
            axes.axvspan(0, length, color="#888888", alpha=0.15, lw=0, label="offline")
        axes.set(title=task, xlabel="steps (thousands)" if length else "environment steps (thousands)")
        if limits is not None:
            margin = 0.03 * (limits[1] - limits[0])
            axes.set_ylim(limits[0] - margin, limits[1] + margin)
        # Below: inside it would cover some curve of every task
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    for axes in panels[len(tasks) :]:
        axes.remove()
    figure.axes[0].set_ylabel(f"{ylabel}\n{statistic} and {_band(curves)}")
    _save(figure, path)


def _band(curves: Curves) -> str:
    """What the interval is."""
    fewest, most = (end(map(len, curves.values())) for end in (min, max))
    if most < FEWEST:
        return "range of the seeds"
    return "95 % CI" if fewest >= FEWEST else f"95 % CI (below {FEWEST} seeds their range)"


def plot_profiles(scores: Scores, path: Path) -> None:
    """Share of runs that score above a threshold: the higher the curve, the better.

    :param scores: of `curves.final_scores`
    :param path: of the picture
    """
    thresholds = np.linspace(0.0, 1.0, 101)
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.subplots()
    chosen = colors(in_order(scores))
    drawn = profiles(scores, thresholds)
    for algo in [algo for algo in chosen if algo in drawn]:
        values, (low, high) = drawn[algo]
        axes.plot(thresholds, values, label=label(algo), color=chosen[algo])
        axes.fill_between(thresholds, low, high, color=chosen[algo], alpha=0.18, lw=0)
    axes.set(xlabel="score τ (0: the task's worst run, 1: its best)", ylabel="share of runs above τ", ylim=(0, 1.02))
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_improvement(estimates: dict[tuple[str, str], Estimate], path: Path) -> None:
    """Probability of improvement, one bar a pair; the dashed line is a coin's.

    :param estimates: by algorithm and baseline
    :param path: of the picture
    """
    figure = Figure(figsize=(6, 0.9 + 0.45 * len(estimates)), layout="constrained")
    axes = figure.subplots()
    shades = colors(in_order(algo for algo, _ in estimates))
    for row, ((ours, _), estimate) in enumerate(estimates.items()):
        if np.isfinite(estimate.low):
            axes.barh(row, estimate.high - estimate.low, left=estimate.low, color=shades[ours], alpha=0.4)
        axes.plot([estimate.value] * 2, [row - 0.4, row + 0.4], color=shades[ours], lw=2)
    axes.axvline(0.5, color="#444444", ls="--", lw=1)
    axes.set_yticks(range(len(estimates)), [f"{label(ours)} > {label(other)}" for ours, other in estimates])
    axes.invert_yaxis()
    axes.set(xlabel="probability of improvement", xlim=(0, 1))
    _save(figure, path)


def plot_by_variant(curves: Curves, path: Path, ylabel: str, xlabel: str) -> None:
    """IQM of the last evaluation for each variant, one line a task, with its 95 % CI or the range of few seeds.

    :param curves: the runs
    :param path: of the picture
    :param ylabel: what is shown
    :param xlabel: what the variants differ in
    """
    algos = in_order(algo for _, algo in curves)
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.subplots()
    for task in sorted({task for task, _ in curves}):
        points = [
            (i, np.array([run[-1, 1] for run in curves[task, a].values()]))
            for i, a in enumerate(algos)
            if (task, a) in curves
        ]
        estimates = [iqm_and_ci(final) for _, final in points]
        values = np.array([estimate.value for estimate in estimates])
        errors = np.abs(np.array([[estimate.low, estimate.high] for estimate in estimates]).T - values)
        axes.errorbar([i for i, _ in points], values, errors, marker="o", capsize=3, label=task)
    axes.set_xticks(range(len(algos)), [algo.partition("+")[2] or label(algo) for algo in algos])
    axes.set(xlabel=xlabel, ylabel=f"{ylabel} at the end\nIQM and {_band(curves)}")
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    axes: Axes
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
