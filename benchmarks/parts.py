"""Data in numbered files that parallel processes make; what a stopped command has finished is used when it goes on."""

import json
import multiprocessing as mp
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SETTINGS = "settings.json"


def make_parts(
    paths: list[Path], size: int, settings: Mapping[str, Any], make: Callable[[Path], None], jobs: int
) -> None:
    """Make the files that are not there yet.

    :param paths: the files, all in one folder
    :param size: what each is worth on the progress bar
    :param settings: all that their contents depend on, for JSON
    :param make: makes the file of a path, and needs no other for it
    :param jobs: processes; 1 makes the files in this one
    :raises SystemExit: if the folder has files made with other settings
    """
    _check_settings(paths[0].parent, dict(settings))
    missing = [path for path in paths if not path.exists()]
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=1) as display:
        done = (len(paths) - len(missing)) * size
        bar = display.add_task(str(paths[0].parent), total=len(paths) * size, completed=done)
        for _ in _made(missing, make, jobs):
            display.advance(bar, size)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that is either complete or not there.

    :param write: writes the file to the path it is given
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    write(unfinished)
    unfinished.replace(path)


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    made_with = json.loads(path.read_text())
    if made_with != settings:
        raise SystemExit(f"{folder} has data made with {made_with}, not {settings}: delete it or name another output")


def _made(paths: list[Path], make: Callable[[Path], None], jobs: int) -> Iterator[None]:
    if jobs == 1:
        yield from map(make, paths)
        return
    # Simulators do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=mp.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(make, path) for path in paths]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
