"""Workers that share a study and die, and storages that are damaged, missing or silent."""

import gc
import itertools
import json
import multiprocessing as mp
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from zoo_workers import STUDY, make_manager

from sb3_flow.zoo.storage import _lock, load_study, open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)


def work(storage, folder, n_trials, stop_in):
    """Do trials that write their numbers down, and stop for ever in one of them."""
    manager = make_manager(storage, folder / str(os.getpid()), n_trials)
    manager.heartbeat = 1
    gc.freeze()  # rl-zoo3 collects garbage after every trial, and half a second is what all of its imports take
    done = 0

    def objective(trial):
        nonlocal done
        done += 1
        x = trial.suggest_float("x", 0, 1)
        with open(folder / "numbers", "a") as file:
            file.write(f"{trial.number}\n")
        if done == stop_in:
            (folder / "stopped").touch()
            time.sleep(1000)
        if n_trials - done < 10:  # some are left when the other worker is found dead
            while not (folder / "killed").exists():
                time.sleep(0.05)
            time.sleep(0.3)
        return x

    manager.objective = objective
    manager.hyperparameters_optimization()


def run_two_workers(storage, folder):
    """Fifty trials by two workers, one of which is killed in its tenth."""
    context = mp.get_context("fork")
    dying = context.Process(target=work, args=(storage, folder, 1000, 10))
    living = context.Process(target=work, args=(storage, folder, 40, None))
    for worker in (dying, living):
        worker.start()
    while not (folder / "stopped").exists():
        assert dying.is_alive()
        time.sleep(0.05)
    os.kill(dying.pid, signal.SIGKILL)
    dying.join()
    (folder / "killed").touch()
    living.join()
    assert living.exitcode == 0
    numbers = Counter(map(int, (folder / "numbers").read_text().split()))
    assert numbers == Counter(range(50)), "every trial was tried once"
    trials = load_study(storage, STUDY).trials
    assert [trial.number for trial in trials] == list(range(50))
    (lost,) = (trial for trial in trials if trial.state != TrialState.COMPLETE)
    assert len({trial.params["x"] for trial in trials if trial.state == TrialState.COMPLETE}) == 49
    return lost, trials


@pytest.mark.slow
def test_two_workers_on_a_journal_file_of_which_one_is_killed(tmp_path):
    lost, _ = run_two_workers(str(tmp_path / "study.log"), tmp_path)
    assert lost.state == TrialState.RUNNING  # journal files have no heartbeat


@pytest.fixture
def postgresql():
    """URL of a PostgreSQL server that runs for one test."""
    folders = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ["PATH"]]
    initdb, pg_ctl = (shutil.which(name, path=os.pathsep.join(folders)) for name in ("initdb", "pg_ctl"))
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server")
    pytest.importorskip("psycopg")
    # Not tmp_path: a socket's path is short, and another user must get there, for the server refuses to be root
    with tempfile.TemporaryDirectory() as folder:
        user = None
        if os.geteuid() == 0:
            user = "nobody"
            shutil.chown(folder, user)
        options = {"check": True, "user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
        subprocess.run([initdb, "-D", "data", "-U", "optuna", "-A", "trust", "--no-sync"], **options)
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
        subprocess.run([pg_ctl, "-D", "data", "-o", settings, "-l", "log", "-w", "start"], **options)
        yield f"postgresql+psycopg://optuna@/postgres?host={folder}"
        subprocess.run([pg_ctl, "-D", "data", "-m", "immediate", "-w", "stop"], **options)


@pytest.mark.slow
def test_two_workers_on_postgresql_of_which_one_is_killed(postgresql, tmp_path):
    lost, trials = run_two_workers(postgresql, tmp_path)
    assert lost.state == TrialState.FAIL
    (retry,) = (trial for trial in trials if "failed_trial" in trial.system_attrs)
    assert retry.system_attrs["failed_trial"] == lost.number
    assert retry.params == lost.params


@pytest.mark.slow
def test_trials_of_the_dead_do_not_count(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"

    def worker(heartbeat=60):
        manager = make_manager(storage, tmp_path, options={"max_total_trials": 1})
        manager.heartbeat = heartbeat
        manager.objective = lambda trial: trial.suggest_float("x", 0, 1)
        return manager

    manager = worker()
    manager._join_study(open_storage(storage))
    abandoned = optuna.load_study(storage=open_storage(storage), study_name=STUDY).ask()
    abandoned.storage.record_heartbeat(abandoned._trial_id)
    time.sleep(3)
    worker(heartbeat=1).hyperparameters_optimization()
    states = [trial.state for trial in load_study(storage, STUDY).trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


# --- Storages ---


@pytest.mark.parametrize("damage", ["garbage\n", '{"op_code": 4, "worker', '"text"\n'])
def test_a_damaged_journal_is_refused_with_the_line_and_a_remedy(damage, tmp_path):
    path = tmp_path / "study.log"
    optuna.create_study(storage=open_storage(str(path)), study_name=STUDY)
    whole = path.read_text()
    path.write_text(whole + damage)
    for use in (open_storage, lambda storage: load_study(storage, STUDY)):
        with pytest.raises(ValueError, match=r"study.log' is not allowed: line 2 is damaged; `head -n 1 .*"):
            use(str(path))
    saved = subprocess.run(["head", "-n", "1", path], capture_output=True, text=True, check=True).stdout
    assert saved == whole
    assert json.loads(saved)


def test_a_lock_that_the_dead_hold_is_broken_wherever_the_journal_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optuna.create_study(storage=open_storage("studies/study.log"), study_name=STUDY)
    lock = _lock(Path("studies/study.log"))
    lock.acquire()
    monkeypatch.setattr(optuna.storages.journal._file.time, "monotonic", itertools.count(0, 100.0).__next__)
    assert load_study("studies/study.log", STUDY).trials == []


def test_a_journal_that_may_only_be_read_is_read_though_its_last_line_is_being_written(tmp_path, monkeypatch):
    path = tmp_path / "study.log"
    optuna.create_study(storage=open_storage(str(path)), study_name=STUDY).enqueue_trial({"x": 1})
    with open(path, "a") as file:
        file.write('{"op_code": 4, "worker')

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert len(load_study(str(path), STUDY).trials) == 1
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 is damaged"):
        load_study(str(path), STUDY)


def test_a_heartbeat_that_fails_does_not_end_the_others(tmp_path, caplog):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    trial = optuna.create_study(storage=storage, study_name=STUDY).ask()
    storage.engine.dispose()
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("ALTER TABLE trial_heartbeats RENAME TO elsewhere")
    storage.record_heartbeat(trial._trial_id)
    assert "No heartbeat of a trial was recorded" in caplog.text
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("ALTER TABLE elsewhere RENAME TO trial_heartbeats")
    storage.record_heartbeat(trial._trial_id)
    assert storage._get_stale_trial_ids(trial.study._study_id) == []


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("study.journal", "study.journal"),
        ("postgres://optuna:hunter2@host/study", "postgres:..."),  # the scheme's old name
        ("postgresql:/optuna:hunter2@host/study", "postgresql:..."),
        ("postgresql+psycopg://optuna:hunter2/study", "postgresql+psycopg:..."),  # no host, so it is read as a port
        ("oracle://optuna:hunter2@host/study", "oracle:..."),  # no driver
    ],
)
def test_a_storage_that_cannot_be_read_keeps_its_password_secret_and_is_told_what_is_allowed(storage, shown):
    with pytest.raises(ValueError, match=r"^storage=") as error:
        open_storage(storage)
    message = "".join(traceback.format_exception(error.value))
    assert "hunter2" not in message
    assert (
        f"storage={shown!r} is not allowed: a path ending with .log, or a database's URL, like postgresql+psy"
        in message
    )


@pytest.mark.parametrize("url", ["optuna:hunter2@/postgres?host={}", "optuna@/postgres?password=hunter2&host={}"])
def test_a_database_that_does_not_answer_keeps_its_password_secret(url, tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match="the database says") as error:
        open_storage("postgresql+psycopg://" + url.format(tmp_path))
    assert "hunter2" not in str(error.value)
