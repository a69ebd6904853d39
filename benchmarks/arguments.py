"""Arguments that the commands of several benchmarks share."""

import argparse
import difflib
import json
from collections.abc import Collection, Iterable
from typing import Any


def json_object(text: str) -> dict[str, Any]:
    """An argument of the command line: arguments of SACFlow."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object: write it like '{{\"compile\": true}}'")
    return value


def positive(text: str) -> int:
    """An argument of the command line: a number of processes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def check_tasks(parser: argparse.ArgumentParser, tasks: Iterable[str], known: Collection[str]) -> None:
    """Refuse tasks that do not exist, and name some that do.

    :param parser: stops the command
    :param tasks: what `--tasks` says
    :param known: what it may say
    """
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=5, cutoff=0.0)
            parser.error(f"--tasks {task}: there is no such task here; near it are {', '.join(near)}")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to train; the same for every sweep.

    :param parser: takes the arguments
    """
    parser.add_argument("--jobs", type=positive, default=2, help="processes at a time")
    parser.add_argument("--ray", metavar="ADDRESS", help='train on a Ray cluster: its address, "auto" or "local"')
