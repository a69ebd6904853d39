"""One HTML file with all results: curves to filter, tables, figures and their commands. It needs no network.

python benchmarks/page.py benchmarks/results docs/images --out results.html
"""

import argparse
import base64
import csv
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from figures import COLORS, LABELS, colors, label
from records import read_records

HERE = Path(__file__).parent
RECORD = "command.txt"  # beside the results of benchmarks/reproduce.py
METRICS = ("deterministic_return", "stochastic_return", "success_rate", "stochastic_success_rate")
# Of a run's record: what the panels say already, and what is shown apart
ELSEWHERE = ("task", "algo", "seed", "out", "commit", "machine")


def section(folder: Path) -> str:
    """What lies directly in a folder, "" if that is nothing."""
    parts = []
    record = folder / RECORD
    if record.exists():
        parts.append(f"<pre>{escape(record.read_text(encoding='utf-8'))}</pre>")
    parts += [table(path) for path in sorted(folder.glob("summary.csv"))]
    for path in sorted(folder.glob("*.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<p>{escape(path.stem)}<br><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
        )
    return f"<h2>{escape(str(folder))}</h2>\n" + "\n".join(parts) if parts else ""


def table(path: Path) -> str:
    """A CSV as a table."""
    with open(path) as file:
        header, *rows = csv.reader(file)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def read_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """All runs of `benchmarks/learning.py` below a folder, as the page's script takes them.

    :param folder: with `<task>/<algo>/<seed>.csv` somewhere below it
    """
    for path in sorted(folder.rglob("*/*/*.csv")):
        with open(path) as file:
            rows = {float(row["step"]): row for row in csv.DictReader(file) if row.get("step")}
        values = {
            name: [[step, float(row[name])] for step, row in sorted(rows.items()) if row.get(name)] for name in METRICS
        }
        if not any(values.values()):
            continue
        task, algo = path.parts[-3:-1]
        record = path.with_suffix(".jsonl")
        settings = read_records(record)[-1] if record.exists() else {}
        known = algo.partition("+")[0] in LABELS
        overrides = settings.get("overrides", {})
        yield {
            "set": str(path.parents[2]),
            "task": task,
            "algo": algo,
            "label": label(algo) if known else algo,
            "seed": path.stem,
            "file": str(path),
            "offline": min(overrides.get("offline_steps", 0), settings.get("steps", 0)),
            "commit": settings.get("commit", ""),
            "machine": settings.get("machine", ""),
            "settings": {
                name: json.dumps(value) if isinstance(value, dict) else value
                for name, value in settings.items()
                if name not in ELSEWHERE
            },
            "values": {name: curve for name, curve in values.items() if curve},
        }


def curves(folders: list[Path]) -> str:
    """The part of the page whose curves are chosen and pointed at, "" without runs."""
    runs = [run for folder in folders for run in read_runs(folder)]
    for name in {run["set"] for run in runs}:
        of_set = [run for run in runs if run["set"] == name]
        known = sorted({run["algo"] for run in of_set if run["algo"].partition("+")[0] in COLORS})
        chosen = colors(known)
        for run in of_set:
            run["color"] = chosen.get(run["algo"], "#555555")
    if not runs:
        return ""
    data = json.dumps(runs, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<h2>Curves</h2>\n<div id="controls"></div>\n<div id="panels"></div>\n<div id="details"></div>\n'
        f'<script type="application/json" id="runs">{data}</script>\n'
        f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script>"
    )


def write_page(folders: list[Path], out: Path) -> None:
    """Write the page.

    :param folders: they and all below them are shown
    :param out: the HTML file
    :raises ValueError: if a folder is not there
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"folders={str(folder)!r} is not allowed: there is no such folder")
    below = [path for folder in folders for path in (folder, *sorted(p for p in folder.rglob("*") if p.is_dir()))]
    sections = "\n".join(filter(None, [curves(folders), *map(section, below)]))
    title = "sb3_flow: results"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n"
        f"<body><h1>{title}</h1>\n{sections}\n</body></html>\n",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results.html"))
    args = parser.parse_args()
    try:
        write_page(args.folders, args.out)
    except ValueError as error:
        parser.error(str(error))
    print(args.out)


if __name__ == "__main__":
    main()
