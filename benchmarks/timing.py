"""Timings of several functions side by side: measured in a new order every round, written as a table and a picture."""

import csv
import random
import shlex
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from records import append_record
from scores import median_and_ci

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    runs: dict[Key, Callable[[], None]], rounds: int, warmup: int, scale: float
) -> dict[Key, dict[str, float]]:
    """Median and quartiles of the seconds that each of several functions takes, called in a new order every round.

    :param runs: the functions, by a name or another key
    :param rounds: measurements
    :param warmup: rounds before them
    :param scale: what the seconds are multiplied by
    """
    return {name: _quartiles(times) for name, times in _timed(runs, rounds, warmup, scale).items()}


def compared(
    runs: dict[Key, Callable[[], None]], base: Key, rounds: int, warmup: int, scale: float
) -> dict[Key, dict[str, float]]:
    """The same, with the median and its 95 % CI of the ratio to one of them within a round.

    A machine that is shared changes its speed by a tenth from minute to minute, for all of them alike.
    """
    timed = _timed(runs, rounds, warmup, scale)
    rows = {name: _quartiles(times) for name, times in timed.items()}
    for name, times in timed.items():
        rows[name] |= zip(("ratio", "low", "high"), median_and_ci(np.divide(times, timed[base])), strict=True)
    return rows


def _timed(runs: dict[Key, Callable[[], None]], rounds: int, warmup: int, scale: float) -> dict[Key, list[float]]:
    times: dict[Key, list[float]] = {name: [] for name in runs}
    for round_ in range(warmup + rounds):
        for name in random.sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name]()
            if round_ >= warmup:
                times[name].append(scale * (time.perf_counter() - start))
    return times


def _quartiles(times: list[float]) -> dict[str, float]:
    return dict(zip(("median", "q1", "q3"), np.percentile(times, [50, 25, 75]).tolist(), strict=True))


def write_measured(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a CSV, and command, commit and machine beside it; what both held before is gone.

    :param rows: with the same keys
    :param path: of the CSV
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
    record = path.with_suffix(".jsonl")
    record.unlink(missing_ok=True)
    append_record(record, {"command": shlex.join(["python", *sys.argv])})


def write_as_measured(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Print every row as it comes, and write it with those before it, so that a stopped command leaves them.

    :param rows: with the same keys; each may take minutes
    :param path: of the CSV, see `write_measured`
    """
    written: list[dict[str, Any]] = []
    for row in rows:
        written.append(row)
        print(row, flush=True)
        write_measured(written, path)


def write_timings(rows: list[dict[str, Any]], swept: str, unit: str, path: Path, base: str = "crossq") -> None:
    """Print a table with ratios to one contender, write it as CSV, and draw it if several numbers were swept.

    Command, commit and machine are written beside it. The ratios are those of the medians, or of `compared`.

    :param rows: of `interleaved` or `compared`, with "contender" and the settings
    :param swept: the setting that varies
    :param unit: of the medians
    :param path: of the CSV; the picture stands beside it
    :param base: the contender that the ratios refer to
    """
    ratio = f"to_{base}"
    medians = {row[swept]: row["median"] for row in rows if row["contender"] == base}
    for row in rows:
        if "ratio" in row:
            shown = f"{row['ratio']:.3f} ({row['low']:.3f} - {row['high']:.3f})"
        else:
            shown = row[ratio] = round(row["median"] / medians[row[swept]], 3) if row[swept] in medians else ""
        spread = f"({row['q1']:.1f} - {row['q3']:.1f})"
        print(f"{row['contender']:22}{swept}={row[swept]:<6}{row['median']:9.1f} {unit} {spread:18}{shown}")
    write_measured(rows, path)
    values = {row[swept] for row in rows}
    if len(values) > 1 and not any(isinstance(value, str) for value in values):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(row["contender"] for row in rows):
            chosen = [row for row in rows if row["contender"] == name]
            x = [row[swept] for row in chosen]
            axes.plot(x, [row["median"] for row in chosen], marker="o", label=name)
            axes.fill_between(x, [row["q1"] for row in chosen], [row["q3"] for row in chosen], alpha=0.2, lw=0)
        axes.set(xlabel=swept, ylabel=unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(path.with_suffix(".png"), dpi=150)
    print(path)
