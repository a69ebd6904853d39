"""Arguments that the commands of several benchmarks share."""

import argparse
import difflib
import json
from collections.abc import Collection, Iterable
from typing import Any


def json_object(text: str) -> dict[str, Any]:
    """An argument of the command line: arguments of an algorithm."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object: write it like '{{\"compile\": true}}'")
    return value


def positive(text: str) -> int:
    """An argument of the command line: a whole number from 1 on, written as 1000 or 1e3."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if value < 1 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(value)


def swept_values(parser: argparse.ArgumentParser, sweep: list[str], known: Collection[str]) -> tuple[str, list[int]]:
    """The setting that `--sweep` names, and the values behind it.

    :param parser: stops the command
    :param sweep: what the option says
    :param known: settings that may vary
    """
    name, *texts = sweep
    try:
        values = [positive(text) for text in texts]
    except argparse.ArgumentTypeError:
        values = []
    if name not in known or not values:
        parser.error(
            f"--sweep {' '.join(sweep)}: give one of {', '.join(known)}, and whole numbers from 1 on behind it"
        )
    return name, values


def check_tasks(
    parser: argparse.ArgumentParser, tasks: Iterable[str], known: Collection[str], option: str = "--tasks"
) -> None:
    """Refuse tasks that do not exist, and name some that do.

    :param parser: stops the command
    :param tasks: what the option says
    :param known: what it may say
    :param option: its name
    """
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=5, cutoff=0.0)
            parser.error(f"{option} {task}: there is no such task here; near it are {', '.join(near)}")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to train; the same for every sweep.

    :param parser: takes the arguments
    """
    parser.add_argument("--jobs", type=positive, default=2, help="processes at a time")
    parser.add_argument("--ray", metavar="ADDRESS", help='train on a Ray cluster: its address, "auto" or "local"')
