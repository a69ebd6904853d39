"""Rows of results, and what they were measured with: settings, machine and commit, in a file beside them."""

import csv
import io
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sb3_flow.common.files import append_text

BASELINES = ("crossq", "sac", "ppo")


def machine() -> str:
    """One line on the machine, for the record beside a result."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return f"{cpu}, Python {platform.python_version()}, {platform.system()}"


def commit() -> str:
    """The commit of the working folder, "" outside a repository."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def append_record(path: Path, settings: dict[str, Any]) -> None:
    """Add a line with settings, commit and machine.

    :param path: of the file of records
    :param settings: what a command was told
    """
    append_text(path, json.dumps({**settings, "commit": commit(), "machine": machine()}) + "\n")


def append_rows(path: Path, fields: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a CSV in one move; a file that was begun with fewer columns keeps them.

    :param path: of the CSV
    :param fields: its columns, if it is new
    :param rows: values by column
    """
    is_new = not path.exists()
    if not is_new:
        with open(path) as f:
            fields = next(csv.reader(f))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, extrasaction="ignore")
    if is_new:
        writer.writeheader()
    writer.writerows(rows)
    append_text(path, text.getvalue())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def what_counts(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers; results may be moved, data too, and a baseline takes no overrides."""
    overrides = {} if settings.get("algo") in BASELINES else dict(settings["overrides"])
    if "offline_dataset" in overrides:
        name, at, path = str(overrides["offline_dataset"]).partition("@")
        overrides["offline_dataset"] = name + at + Path(path).name
    counting = {name: value for name, value in settings.items() if name not in ("out", "commit", "machine")}
    return {**counting, "overrides": overrides}


def refuse_other_settings(name: str, record: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Stop before results of two settings get into one file.

    :param name: of the run
    :param record: where the settings of its first part are written down
    :param before: these settings; what only they have is not compared, and what they lack is newer than they are
    :param now: what the command asks for
    :raises SystemExit: if they differ
    """
    now = json.loads(json.dumps(now))  # a tuple is written down as a list
    differing = [key for key in now if before.get(key, now[key]) != now[key]]
    if differing:
        raise SystemExit(
            f"{name}: other settings than in {record} ({', '.join(differing)}): give these, or another --out"
        )
