"""Files survive what happens while they are written: kills, full disks, folders that may not be written."""

import errno
import os
import pickle
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kills
import numpy as np
import pytest
from helpers import make_model, make_variant
from stable_baselines3.common.callbacks import CheckpointCallback as SB3CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flow import SACFlow
from sb3_flow.common import files
from sb3_flow.common.checkpoints import CheckpointCallback
from sb3_flow.common.files import append_text, replacing, write_pickle, write_text
from sb3_flow.zoo.files import surviving

linux = pytest.mark.skipif(sys.platform != "linux", reason="kills forked processes, and limits the size of files")


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Files cannot grow beyond `free` bytes; the system reports that as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def save_model(path: Path) -> None:
    make_model().save(path)


def save_buffer(path: Path) -> None:
    make_model(buffer_size=5000).save_replay_buffer(path)


WRITERS: list[Callable[[Path], None]] = [save_model, save_buffer, lambda path: write_text(path, "x" * 10_000)]
writers = pytest.mark.parametrize("write", WRITERS, ids=["model", "buffer", "text"])


@linux
@writers
def test_a_full_disk_is_a_clear_error_and_leaves_the_old_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "file.zip"
    path.write_text("old")
    with full_disk(5_000), pytest.raises(OSError, match=r"file\.zip|could not be saved") as error:
        write(path)
    assert "what was there before is unchanged" in str(error.value)
    assert str(path) in str(error.value)
    assert os.listdir(tmp_path) == ["file.zip"]
    assert path.read_text() == "old"


@writers
def test_a_folder_that_is_not_writable_is_a_clear_error(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.zip"
    path.write_text("old")

    def refuse(file: Any, mode: str = "r") -> Any:
        # As the system does it for everybody but root, who runs tests in containers
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"could not be saved .Permission denied., and what was there before"):
        write(path)
    assert path.read_text() == "old"


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(OSError, match=r"could not be saved .* nothing is there"):
        make_model().save(tmp_path / "folder" / "model")


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_flushed_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        plain = getattr(os, name)

        def watched(*args: Any, name: str = name, plain: Any = plain) -> Any:
            calls.append(name)
            return plain(*args)

        monkeypatch.setattr(os, name, watched)
    write_text(tmp_path / "file", "text")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the move, the folder


def test_links_and_rights_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_lines_are_added(tmp_path: Path) -> None:
    append_text(tmp_path / "new" / "file", "a\n")
    append_text(tmp_path / "new" / "file", "b\n")
    assert (tmp_path / "new" / "file").read_text() == "a\nb\n"


def test_what_killed_processes_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    for name, age in (("old", 2 * files.LEFTOVER_AGE), ("new", 0.0)):
        leftover = tmp_path / f".file.{name}.tmp"
        leftover.write_text("half")
        os.utime(leftover, (time.time() - age,) * 2)
    write_text(tmp_path / "file", "text")
    assert sorted(os.listdir(tmp_path)) == [".file.new.tmp", "file"]


def test_arrays_go_to_the_disk_without_a_copy(tmp_path: Path) -> None:
    array = np.arange(1_000_000, dtype=np.float64)
    written: list[Any] = []

    class Recorder:
        def write(self, data: Any) -> int:
            written.append(data)
            return memoryview(data).nbytes

    pickle.dump({"a": array}, Recorder(), protocol=pickle.HIGHEST_PROTOCOL)  # what `write_pickle` calls
    (large,) = [data for data in written if memoryview(data).nbytes >= array.nbytes]
    assert np.shares_memory(np.frombuffer(large, np.uint8), array)
    write_pickle(tmp_path / "file", array)
    np.testing.assert_array_equal(pickle.loads((tmp_path / "file").read_bytes()), array)


def test_a_damaged_buffer_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    model = make_model().learn(15)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    whole = (tmp_path / "buffer.pkl").read_bytes()
    (tmp_path / "buffer.pkl").write_bytes(whole[: len(whole) // 2])
    kept = model.replay_buffer
    with pytest.raises(ValueError, match=r"buffer\.pkl cannot be read as a replay buffer"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.replay_buffer is kept


@pytest.mark.slow
@linux
def test_kills_at_random_moments_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    assert kills.kill_repeatedly(8, tmp_path, longest=1.0) == []


def test_a_killed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment that counts: all is written, but not yet in its place."""
    make_variant("fql").save(tmp_path / "model")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    other = make_model()
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path / "model")
    monkeypatch.undo()
    type(make_variant("fql")).load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="policy"):
        SACFlow.load(tmp_path / "model", device="cpu")


def test_the_statistics_of_a_vec_normalize_are_whole(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([kills.CountingEnv]))
    env.reset()
    write_pickle(tmp_path / "vecnormalize.pkl", env)
    again = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), DummyVecEnv([kills.CountingEnv]))
    np.testing.assert_array_equal(again.obs_rms.mean, env.obs_rms.mean)  # type: ignore[union-attr]


def test_the_zoos_checkpoints_survive_and_the_users_are_the_users(tmp_path: Path) -> None:
    users = SB3CheckpointCallback(5, str(tmp_path / "own"), save_replay_buffer=True)
    kept, ours = surviving([users, SB3CheckpointCallback(5, str(tmp_path))], str(tmp_path), save_replay_buffer=False)
    assert kept is users
    assert users.save_replay_buffer
    assert isinstance(ours, CheckpointCallback)
