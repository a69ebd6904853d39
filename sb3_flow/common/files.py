"""Files that are there as a whole or not at all: written beside, flushed to the disk, moved into place."""

import glob
import os
import pickle
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LEFTOVER_AGE = 3600.0  # seconds since its last write, after which nobody is writing a file any more


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes its place in one move, once everything is written and on the disk.

    Whatever happens before, a kill or a full disk, what was there is still there.

    :param path: of the file; folders are made, and a link is followed
    :raises OSError: of the kind that the system gave, naming path and reason
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent, glob.escape(target.name))
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
        _flush_folder(target.parent)
    except OSError as error:
        there = "what was there before is unchanged" if target.exists() else "nothing is there"
        problem = f"it could not be saved ({error.strerror or error}), and {there}; check the disk's space and rights"
        raise OSError(error.errno, problem, str(target)) from error
    finally:
        _remove(beside)


def resolve(path: str | os.PathLike[str], suffix: str) -> Path:
    """Where SB3 would save: with a suffix if there is none, beside a folder of this name."""
    path = Path(path)
    if path.suffix == "":
        path = Path(f"{path}.{suffix}")
    return Path(f"{path}_2") if path.is_dir() else path


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file in one move."""
    with replacing(path) as file:
        file.write(text.encode())


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Add to a small text file in one move, so that no line is ever half there."""
    path = Path(path)
    write_text(path, (path.read_bytes().decode() if path.exists() else "") + text)


def write_pickle(path: str | os.PathLike[str], value: Any) -> None:
    """Pickle into a file in one move; arrays go to the disk without a copy."""
    with replacing(path) as file:
        pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what processes that were killed an hour ago, or before, have left half written.

    :param folder: of the files that they wrote
    :param pattern: of these files' names, as of `Path.glob`
    """
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
                leftover.unlink()
        except OSError:  # another process was faster
            continue


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder that is not writable has no such file
        return


def _flush_folder(folder: Path) -> None:
    """Let the move itself survive a power cut; only POSIX systems open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network disks cannot; the file itself is there
        return
    finally:
        os.close(handle)
