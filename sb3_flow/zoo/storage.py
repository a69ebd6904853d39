"""Optuna's storages as several workers need them: journal files that are whole, databases with a heartbeat."""

import json
import logging
import os
import random
import re
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock
from optuna.storages.journal._file import BaseJournalFileLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from sb3_flow.common.checks import require

JOURNAL = ".log"  # what rl-zoo3 knows a journal file by
URLS = "postgresql+psycopg://user:password@host/database or sqlite:///study.db"
HEARTBEAT = 60  # seconds
OPENING_ATTEMPTS = 6
MAX_RETRIES = 3  # of a trial whose worker died: it may be the trial that kills them

logger = logging.getLogger(__name__)


class DatabaseStorage(RDBStorage):
    """A database in which a trial whose worker died is marked as failed and queued again.

    :param url: as SQLAlchemy writes it, for instance "postgresql+psycopg://user@host/database"
    :param heartbeat: seconds between signs of life; a worker that has given none for two of them is dead
    """

    def __init__(self, url: str, heartbeat: int = HEARTBEAT):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat, since 2021
            super().__init__(
                url,
                heartbeat_interval=heartbeat,
                grace_period=2 * heartbeat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
            )

    def record_heartbeat(self, trial_id: int) -> None:
        """Give a sign of life. One that the database does not take is left out: the next follows in time."""
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError as error:  # it would end Optuna's thread, and the living count as dead
            logger.warning("No heartbeat of a trial was recorded: %s", str(error).splitlines()[0])

    def endswith(self, suffix: str) -> bool:
        """False: rl-zoo3 asks this of what it takes for a URL, to tell journal files from databases."""
        return False


class JournalFile(JournalStorage):
    """A journal file, with the lock that its disk allows.

    :param path: of the file
    """

    def __init__(self, path: Path):
        super().__init__(JournalFileBackend(str(path), lock_obj=_lock(path)))

    def endswith(self, suffix: str) -> bool:
        """False: rl-zoo3 would open a journal file itself, with Optuna's lock."""
        return False


def open_storage(storage: str, heartbeat: int = HEARTBEAT) -> BaseStorage:
    """A journal file, which is made if it does not exist, or a database.

    :param storage: a path that ends with ".log", or a database's URL
    :param heartbeat: see `DatabaseStorage`; journal files have none
    :raises ValueError: if the journal is damaged, the URL cannot be read, or the database does not answer
    """
    if storage.endswith(JOURNAL):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        _check_journal(Path(storage))
        return JournalFile(Path(storage))
    # The first to open a database makes its tables. Optuna does that in several steps and without a lock: workers that
    # start at once run into each other
    for _ in range(OPENING_ATTEMPTS - 1):
        try:
            return DatabaseStorage(storage, heartbeat)
        except (ArgumentError, ImportError, ValueError):
            # What SQLAlchemy cannot read may have its password anywhere behind the scheme, and so may its own message
            shown = re.sub(":.*", ":...", storage)
            allowed = f"a path ending with {JOURNAL}, or a database's URL, like {URLS}, whose driver is installed"
            raise ValueError(f"storage={shown!r} is not allowed: {allowed}") from None
        except DBAPIError:
            time.sleep(random.uniform(0.0, 0.2))
    try:
        return DatabaseStorage(storage, heartbeat)
    except DBAPIError as error:
        shown = make_url(storage).difference_update_query(["password"]).render_as_string(hide_password=True)
        reason = str(error.orig).strip().splitlines()[0]
        raise ValueError(f"storage={shown!r} is not allowed: the database says {reason!r}") from error


def load_study(storage: str, study_name: str) -> optuna.Study:
    """A study that is there.

    :param storage: see `open_storage`
    :param study_name: its name
    :raises ValueError: if it is not, or `open_storage` finds something wrong
    """
    is_file = storage.endswith(JOURNAL)
    require(not is_file or Path(storage).is_file(), "storage", storage, "there is no such file")
    opened = open_storage(storage)
    names = optuna.get_all_study_names(opened)
    require(study_name in names, "study_name", study_name, f"the storage has {', '.join(names) or 'no study'}")
    return optuna.load_study(study_name=study_name, storage=opened)


def _check_journal(path: Path) -> None:
    """Refuse a journal that is damaged, before anything is appended to it."""
    if not path.exists():
        return
    with _whole_lines(path) as lines:
        for number, line in enumerate(lines, 1):
            advice = f"line {number} is damaged; `head -n {number - 1} {path}` is what can be saved"
            require(_is_entry(line), "storage", str(path), advice)


@contextmanager
def _whole_lines(path: Path) -> Iterator[Iterable[bytes]]:
    """The lines of a journal, of which nobody is half way through one."""
    lock = _lock(path)
    try:
        lock.acquire()
    except OSError:  # in a folder that may be read only: the last line may be half there
        yield (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
        return
    try:
        with open(path, "rb") as file:
            yield file
    finally:
        lock.release()


def _lock(path: Path) -> BaseJournalFileLock:
    """Optuna's lock by a symbolic link, or where there are none (Windows, FAT, some network disks) by a file.

    All workers of a study see the same disk, and so take the same. Its path is absolute: Optuna looks through the link
    for when a worker died that held it, and takes one that leads nowhere for held for ever.
    """
    path = path.absolute()
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}.probe")
    try:
        os.symlink(path.name, probe)
    except (OSError, NotImplementedError):
        return JournalFileOpenLock(str(path))
    probe.unlink()
    return JournalFileSymlinkLock(str(path))


def _is_entry(line: bytes) -> bool:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(entry, dict) and "op_code" in entry
