"""Puts the figures of committed CSVs into the tables of README.md and docs/, between their markers.

    python benchmarks/tables.py

Text between `<!-- NAME -->` and `<!-- /NAME -->` is this script's, the rest of a page is not touched.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from curves import RETURN, STOCHASTIC, SUCCESS, Curves, finished, offline_steps, read_curves
from figures import in_order, label
from numpy.typing import NDArray

from sb3_flow.common.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "which_algorithm.md", ROOT / "docs" / "sizes.md")
# What README calls an algorithm, by its name in the results
CLASSES = {
    "SACFlow": "flow_t",
    "FQL": "fql",
    "FQL(horizon_length=5)": "qc_fql",
    "FQL(horizon_length=5, best_of_n=32)": "qc",
    "FlowRL": "flow_rl",
    "QSM": "qsm",
    "DIME": "dime",
    "ReinFlow": "reinflow",
}
SHOWN_TASK = "HalfCheetah-v4"  # where there are runs of more than one algorithm from scratch, and so in README
NO_RESULT = "not yet"


def final(seeds: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Last value of each seed."""
    return np.array([run[-1, 1] for run in seeds.values()])


def mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.2f}" if len(values) else ""


def count(seeds: dict[int, Any]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def short(task: str) -> str:
    """A task's name without what names its data."""
    return task.partition("-play")[0].partition("-mh")[0]


def from_scratch() -> Curves:
    folder = RESULTS / "learning"
    return finished(read_curves(folder, RETURN), folder)


def from_data(column: str = SUCCESS) -> Curves:
    folder = RESULTS / "offline"
    return finished(read_curves(folder, column), folder)


def after_data(seeds: dict[int, NDArray[np.float64]], offline: int) -> NDArray[np.float64]:
    """Value of each seed at the end of its offline phase."""
    return np.array([run[run[:, 0] <= offline][-1, 1] for run in seeds.values()])


def length(seeds: dict[int, NDArray[np.float64]]) -> int:
    """Steps of the runs of an algorithm, all of them finished."""
    return int(next(iter(seeds.values()))[-1, 0])


def markdown(rows: list[list[str]]) -> str:
    """A table, its first row the head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scratch_table(_: str) -> str:
    """Return of the last evaluation: mean over seeds, and the lowest and highest."""
    curves = from_scratch()
    tasks = sorted({task for task, _ in curves})
    steps = {task: max(length(seeds) for (t, _), seeds in curves.items() if t == task) for task in tasks}
    rows = [["", *(f"{task}, {steps[task]:,} steps" for task in tasks)]]
    for algo in in_order(algo for _, algo in curves):
        cells = []
        for task in tasks:
            if (task, algo) not in curves:
                cells.append("")
                continue
            seeds = curves[task, algo]
            values = final(seeds)
            other = f" after {length(seeds):,} steps" if length(seeds) != steps[task] else ""
            range_ = f"{values.min():.0f} to {values.max():.0f}; " if len(values) > 1 else ""
            cells.append(f"{values.mean():.0f}{other} ({range_}{count(seeds)})")
        rows.append([label(algo), *cells])
    return markdown(rows)


def data_table(_: str) -> str:
    """Success after each phase, means over seeds; of the stochastic policy where it was recorded."""
    curves, stochastic, offline = from_data(), from_data(STOCHASTIC), offline_steps(RESULTS / "offline")
    success = ["success", "stochastic"]
    rows = [["task", "", "seeds", "updates from data", *success, "steps of the environment", *success]]
    for task in sorted({task for task, _ in curves}):
        for algo in in_order(algo for t, algo in curves if t == task):
            seeds = curves[task, algo]
            from_data_alone = offline[task, algo]
            online = length(seeds) - from_data_alone
            runs = [seeds, stochastic.get((task, algo), {})]
            first = [mean(after_data(each, from_data_alone)) for each in runs]
            last = [mean(final(each)) for each in runs]
            names = [short(task), label(algo), str(len(seeds))]
            rows.append([*names, f"{from_data_alone:,}", *first, f"{online:,}", *last])
    return markdown(rows)


def measured(algo: str) -> str:
    """What is measured of an algorithm, in a few words: on the task that README shows, and from data."""
    found = []
    key = SHOWN_TASK, algo
    scratch, goes_on = from_scratch().get(key), ""
    if scratch is None:
        scratch, goes_on = read_curves(RESULTS / "learning", RETURN).get(key), ", under way"
    if scratch is not None:
        value = f"{final(scratch).mean():.0f} after {length(scratch):,} steps"
        found.append(f"{SHOWN_TASK}: {value} ({count(scratch)}{goes_on})")
    data = [(task, seeds) for (task, name), seeds in from_data().items() if name == algo]
    if data:
        task, seeds = max(data, key=lambda each: len(each[1]))
        stochastic = from_data(STOCHASTIC).get((task, algo), {})
        more = f", stochastic {mean(final(stochastic))}" if stochastic else ""
        found.append(f"{short(task)}: success {mean(final(seeds))}{more} ({count(seeds)})")
    return "; ".join(found) or NO_RESULT


def algorithms_table(before: str) -> str:
    """README's table with its last column filled; its rows and other columns are written by hand."""
    rows = []
    for i, line in enumerate(before.strip().splitlines()):
        cells = line.strip("|").split("|")[:-1]
        name = cells[0].strip().strip("`")
        cells.append([" measured ", "---"][i] if i < 2 else f" {measured(CLASSES[name])} ")
        rows.append("|" + "|".join(cells) + "|")
    return "\n".join(rows)


def baselines(_: str) -> str:
    """What README's figure stands beside."""
    curves = from_scratch()
    found = {algo: curves[SHOWN_TASK, algo] for algo in ("crossq", "sac")}
    text = ", ".join(f"{label(algo)} {final(seeds).mean():.0f} ({count(seeds)})" for algo, seeds in found.items())
    more = "docs/results.md#from-scratch-flow-t-flow-g-mlp-crossq-sac-and-ppo"
    critics = "From scratch all have critics of 256-256 (SACFlow's default is 1024-1024)"
    return f"{critics}. Beside them on {SHOWN_TASK}: {text}. [More]({more})."


def read(name: str) -> list[dict[str, str]]:
    with open(RESULTS / "sizes" / name) as file:
        return list(csv.DictReader(file))


def rows_table(_: str) -> str:
    """A million steps, in GB."""
    rows = [["", "an observation", "an action", "replay buffer", "data in memory", "data in OGBench's layout"]]
    for row in read("rows.csv"):
        sizes = [f"{float(row[name]) / 1e3:.2f} GB" for name in ("buffer", "data", "compact_data")]
        rows.append([short(row["task"]), f"{int(row['numbers']):,} {row['dtype']}", row["actions"], *sizes])
    return markdown(rows)


def models_table(_: str) -> str:
    rows = [["", "the actor's parameters", "all parameters", "the saved model"]]
    for row in read("models.csv"):
        sizes = [f"{int(row[name]):,}" for name in ("actor", "all_nets")]
        rows.append([label(row["algo"]), *sizes, f"{int(row['file']) / 1e6:.0f} MB"])
    return markdown(rows)


def hours_table(_: str) -> str:
    """A million steps of `learn()`, from the milliseconds of one."""
    with open(RESULTS / "speed" / "end_to_end_small.csv") as file:
        measured = {row["contender"]: float(row["median"]) for row in csv.DictReader(file)}
    rows = [["", "ms a step", "a million steps"]]
    names = {"+compiled": ", `compile=True`", "+compiled+bf16": ', `compile=True, amp="bf16"`'}
    for contender, ms in measured.items():
        algo, plus, suffix = contender.partition("+")
        if algo != "sbx_crossq":
            rows.append([label(algo) + names.get(plus + suffix, ""), f"{ms:.1f}", f"{ms / 3.6:.1f} hours"])
    return markdown(rows)


TABLES: dict[str, Callable[[str], str]] = {
    "algorithms": algorithms_table,
    "baselines": baselines,
    "from scratch": scratch_table,
    "from data": data_table,
    "rows": rows_table,
    "models": models_table,
    "hours": hours_table,
}


def filled(page: str) -> str:
    """A page with its tables made anew.

    :param page: its text
    """
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = page.partition(start)
        if found:
            old, _, after = rest.partition(end)
            page = f"{before}{start}{table(old)}\n{end}{after}"
    return page


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path in PAGES:
        write_text(path, filled(path.read_text(encoding="utf-8")))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
