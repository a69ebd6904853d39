"""The errors of all loaders: each names the file, the key and the row."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """Data that nothing may be trained on.

    :param source: the file, or what else the data came from
    :param key: the array, by its name in the file
    :param problem: what is wrong with it, and what is allowed
    :param row: the first bad row of that array
    """

    def __init__(self, source: str | Path, key: str | None, problem: str, row: int | None = None):
        where = [str(source)]
        if key is not None:
            where.append(repr(key) if row is None else f"{key!r} row {row}")
        super().__init__(f"{': '.join(where)}: {problem}")


class HorizonError(DataError):
    """Data that have no chunks of the length that is asked for; of another there may be some."""


def missing_array(source: str | Path, key: str, present: Iterable[str], advice: str = "") -> DataError:
    """The error for an array that is not there.

    :param source: the file, or what else the data came from
    :param key: the array's name
    :param present: names of those that are there
    :param advice: what else helps
    """
    names = sorted(present)
    name = key.rpartition("/")[2]
    shorter = [other for other in names if name.startswith(other)]  # obs, action, reward
    if key in ("masks", "terminals") and "dones" in names:
        hint = "; dones say less than masks and terminals, which docs/own_data.md explains"
    elif key == "masks" and "timeouts" in names:  # D4RL's
        hint = "; with timeouts beside them, masks = 1 - terminals, and then terminals = terminals | timeouts"
    else:
        hint = f"; rename {shorter[0]} if it is that" if shorter else ""
        if name == "observations" and not shorter and any(other.startswith(f"{name}_") for other in names):
            hint = "; of a Dict space name them observations/<key>"
    return DataError(source, key, f"it is missing; there are {', '.join(names) or 'no arrays'}{hint}{advice}")


@contextmanager
def reading(source: str | Path, key: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a DataError.

    :param source: the file that is read
    :param key: the array that is read
    :raises DataError: for every other exception
    """
    try:
        yield
    except DataError:
        raise
    # A damaged file makes zipfile, zlib, numpy, h5py and minari raise nearly every built-in exception
    except Exception as error:
        raise DataError(source, key, f"cannot be read ({type(error).__name__}: {error}); is it complete?") from error


def missing_file(what: str, looked: list[Path], how: str, cause: BaseException | None = None) -> FileNotFoundError:
    """The error for data that is not on this machine.

    :param what: the data, as the user named it
    :param looked: every place that was looked at
    :param how: how to get the data
    :param cause: why the download failed, if one was tried
    """
    places = ", ".join(str(path.absolute()) for path in looked)
    tried = f" The download failed ({type(cause).__name__}: {cause})." if cause is not None else ""
    return FileNotFoundError(f"{what} was not found; looked for {places}.{tried} {how}")
