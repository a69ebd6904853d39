"""What a result was measured with: settings, machine and commit, in a file beside it."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any


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
    with open(path, "a") as f:
        f.write(json.dumps({**settings, "commit": commit(), "machine": machine()}) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()]


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
