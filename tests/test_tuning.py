"""Studies: trials of several seeds, workers that share one and die, and what is said when something does not fit."""

import argparse
import gc
import json
import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import gymnasium as gym
import optuna
import pytest
from gymnasium import spaces
from helpers import RandomEnv
from optuna.trial import TrialState

from sb3_flow.zoo import register
from sb3_flow.zoo.sampler import convert_sac_flow_params, sample_sac_flow_params
from sb3_flow.zoo.seeds import mean_of_seeds
from sb3_flow.zoo.storage import load_study, open_storage

STUDY = "study"
optuna.logging.set_verbosity(optuna.logging.WARNING)


# --- Several seeds a trial ---


def trials_before(values):
    """A study with a finished trial that reported these values, and a pruner that wants at least them."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    trial = study.ask()
    for step, value in enumerate(values):
        trial.report(value, step)
    study.tell(trial, values[-1])
    return study


def test_a_trial_reports_and_returns_the_mean_of_its_seeds_which_take_turns():
    study = trials_before([0.0, 0.0, 0.0])
    training: list[int] = []

    def train(trial, seed):
        rate = trial.suggest_float("rate", 0, 1)
        assert trial.params == {"rate": rate}
        for step in range(3):
            training.append(seed)
            assert len(training) == 1, "two seeds train at once"
            training.remove(seed)
            trial.report(step + seed, step)
            assert not trial.should_prune()
        assert trial.number == f"1_seed_{seed}"
        return 2.0 + seed

    study.optimize(lambda trial: mean_of_seeds(train, trial, 3), n_trials=1)
    trial = study.trials[1]
    assert trial.intermediate_values == {0: 1.0, 1: 2.0, 2: 3.0}
    assert trial.value == 3.0
    assert trial.user_attrs["seeds"] == [2.0, 3.0, 4.0]


def test_a_bad_seed_is_not_pruned_while_the_mean_is_good():
    study = trials_before([1.0, 1.0])

    def train(trial, seed):
        for step in range(2):
            trial.report(2.0 + (5.0 if seed else -5.0), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.0

    study.optimize(lambda trial: mean_of_seeds(train, trial, 2), n_trials=1)
    assert study.trials[1].state == TrialState.COMPLETE


def test_all_seeds_are_pruned_when_the_mean_is_bad():
    study = trials_before([1.0, 1.0])
    steps = []

    def train(trial, seed):
        for step in range(2):
            steps.append((seed, step))
            trial.report(0.9, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.9

    study.optimize(lambda trial: mean_of_seeds(train, trial, 2), n_trials=1)
    assert study.trials[1].state == TrialState.PRUNED
    assert sorted(steps) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("error", [optuna.TrialPruned, ZeroDivisionError])
def test_what_stops_one_seed_stops_the_trial(error):
    study = optuna.create_study()

    def train(trial, seed):
        trial.report(0.0, 0)
        if seed == 1:
            raise error
        trial.report(0.0, 1)
        return 0.0

    with pytest.raises(error):
        mean_of_seeds(train, study.ask(), 3)
    assert not any(thread.name.startswith("ThreadPool") for thread in threading.enumerate())


def test_seeds_that_have_not_begun_when_one_stops_are_not_trained():
    trained = []

    def train(trial, seed):
        trained.append(seed)
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        mean_of_seeds(train, optuna.create_study().ask(), 3)
    assert len(trained) == 1


def run_in_time(function, seconds=30):
    """Run what hangs for ever if it is wrong."""
    process = mp.get_context("fork").Process(target=function)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode == 0


def test_a_seed_that_reports_less_often_counts_with_its_result_and_nobody_waits_for_it():
    study = optuna.create_study(direction="maximize")

    def train(trial, seed):
        for step in range(1, seed + 1):  # seed 0 reports nothing
            trial.report(10.0 * seed + step, step)
        return float(seed)

    def check():
        study.optimize(lambda trial: mean_of_seeds(train, trial, 3), n_trials=1)
        (trial,) = study.trials
        assert trial.intermediate_values == {1: (0 + 11 + 21) / 3, 2: (0 + 1 + 22) / 3}
        assert trial.user_attrs["seeds"] == [0.0, 1.0, 2.0]
        assert trial.value == 1.0

    run_in_time(check)


# --- Several workers a study ---


def make_manager(storage, folder, n_trials=1, timesteps=100, options=None, **hyperparams):
    """A worker of the zoo that has read our YAML.

    :param options: changes to ExperimentManager's arguments
    """
    from rl_zoo3.exp_manager import ExperimentManager

    register()
    manager = ExperimentManager(
        argparse.Namespace(),
        "sac_flow",
        log_folder=str(folder),
        n_timesteps=timesteps,
        hyperparams=hyperparams,
        optimize_hyperparameters=True,
        **{
            "env_id": "Pendulum-v1",
            "storage": storage,
            "study_name": STUDY,
            "n_trials": n_trials,
            "no_optim_plots": True,
            "seed": 0,
            "verbose": 0,
            **(options or {}),
        },
    )
    manager.setup_experiment()
    return manager


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


def test_two_workers_on_postgresql_of_which_one_is_killed(postgresql, tmp_path):
    lost, trials = run_two_workers(postgresql, tmp_path)
    assert lost.state == TrialState.FAIL
    (retry,) = (trial for trial in trials if "failed_trial" in trial.system_attrs)
    assert retry.system_attrs["failed_trial"] == lost.number
    assert retry.params == lost.params


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


# --- What the command line gives ---


def test_what_the_command_line_gives_is_kept_in_every_trial_and_what_the_yaml_gives_is_searched(tmp_path):
    storage = str(tmp_path / "study.log")
    given = {"learning_rate": 5e-4, "policy_kwargs": {"flow_steps": 3, "net_arch": {"qf": [8]}}}
    manager = make_manager(storage, tmp_path, **given)
    trained = []

    def objective(trial):
        trained.append(sample_sac_flow_params(trial, 1, 1, {}))
        return 0.0

    manager.objective = objective
    manager.hyperparameters_optimization()
    (arguments,) = trained
    assert arguments["policy_kwargs"].items() >= given["policy_kwargs"].items()
    assert "learning_rate" not in arguments
    assert {"qf_learning_rate", "batch_size"} <= arguments.keys()  # the YAML has a batch size
    assert "d_model" in arguments["policy_kwargs"]


def test_a_trial_is_trained_again_with_its_own_policy_kwargs_and_those_of_the_command(tmp_path):
    storage = str(tmp_path / "study.log")
    given = {"policy_kwargs": {"d_model": 32, "net_arch": {"qf": [8]}}}
    manager = make_manager(storage, tmp_path, **given)
    manager.objective = lambda trial: sample_sac_flow_params(trial, 1, 1, {})["learning_rate"]
    manager.hyperparameters_optimization()
    again = make_manager(storage, tmp_path, options={"trial_id": 0}, **given)
    trained, _ = again.read_hyperparameters()
    other = make_manager(storage, tmp_path, options={"trial_id": 0}, policy_kwargs={"d_model": 16})
    assert other.read_hyperparameters()[0]["policy_kwargs"] == {**trained["policy_kwargs"], "d_model": 16}
    trial = convert_sac_flow_params(load_study(storage, STUDY).trials[0].params)
    assert trained["policy_kwargs"] == trial["policy_kwargs"]
    assert trained["policy_kwargs"].keys() >= {"flow_steps", "d_model", "net_arch", "n_layers"}
    assert trained["learning_rate"] == trial["learning_rate"]


def test_the_target_entropy_counts_all_numbers_of_an_action(tmp_path):
    gym.register("Matrix-v0", lambda: RandomEnv(action_space=spaces.Box(-1.0, 1.0, (2, 3))))
    try:
        assert make_manager(None, tmp_path, options={"env_id": "Matrix-v0", "study_name": None}).n_actions == 6
    finally:
        del gym.registry["Matrix-v0"]


def test_workers_that_are_given_the_same_seed_draw_differently(tmp_path):
    def draw(storage):
        sampler = make_manager(storage, tmp_path)._create_sampler("random")
        return optuna.create_study(sampler=sampler).ask().suggest_float("x", 0, 1)

    shared = str(tmp_path / "study.log")
    assert draw(shared) != draw(shared)
    assert draw(None) == draw(None)


# --- What does not fit ---


def test_a_study_with_other_settings_is_refused_before_a_trial_is_made(tmp_path):
    storage = str(tmp_path / "study.log")
    first = make_manager(storage, tmp_path, n_trials=2)
    first.objective = lambda trial: 0.0
    first.hyperparameters_optimization()
    others = {
        "policy_kwargs, highest_log_std": {"policy_kwargs": {"noise_std": 0.1}},
        "d_model, n_layers, policy": {"policy": "FlowGPolicy"},
        "learning_starts": {"learning_starts": 7},
        "n_timesteps": {"timesteps": 200},
        "seeds_per_trial": {"seeds_per_trial": 2},
        "gamma, one_minus_gamma": {"gamma": 0.9},
        "n_eval_episodes": {"options": {"n_eval_episodes": 1}},
        "eval_env_kwargs": {"options": {"eval_env_kwargs": {"g": 5.0}}},
    }
    for differing, hyperparams in others.items():
        with pytest.raises(ValueError, match=r"^study_name='study' is not allowed: that study has other") as error:
            make_manager(storage, tmp_path, **hyperparams).hyperparameters_optimization()
        named = str(error.value).partition("(")[2].partition(")")[0]
        assert set(differing.split(", ")) <= set(named.split(", "))
        assert "\n" not in str(error.value)
    assert len(load_study(storage, STUDY).trials) == 2


def join(storage, folder, **hyperparams):
    """A worker with these settings does a trial of a study with offline data."""
    data = {"offline_dataset": "ogbench:cube@/here/cube.npz", "offline_steps": 10}
    manager = make_manager(storage, folder, **{**data, **hyperparams})
    manager.objective = lambda trial: 0.0
    manager.hyperparameters_optimization()


def test_the_folder_of_the_data_may_differ_and_no_other_fixed_value(tmp_path):
    storage = str(tmp_path / "study.log")
    join(storage, tmp_path)
    join(storage, tmp_path, offline_dataset="ogbench:cube@/there/cube.npz")
    for name, value in {
        "offline_steps": 20,
        "offline_dataset": "ogbench:scene@/here/cube.npz",
        "normalize": True,
    }.items():
        with pytest.raises(ValueError, match=rf"other settings \({name}\)"):
            join(storage, tmp_path, **{name: value})
    assert len(load_study(storage, STUDY).trials) == 2


def test_a_study_of_another_algorithm_is_refused(tmp_path):
    storage = str(tmp_path / "study.log")
    study = optuna.create_study(storage=open_storage(storage), study_name=STUDY, direction="maximize")
    study.set_user_attr("command", "python -m rl_zoo3.train --algo sac")
    study.tell(study.ask({"learning_rate": optuna.distributions.FloatDistribution(0, 1)}), 0.0)
    with pytest.raises(ValueError, match="study_name='study' is not allowed"):
        make_manager(storage, tmp_path).hyperparameters_optimization()
    with pytest.raises(ValueError, match="trials are not sac_flow's"):
        make_manager(storage, tmp_path, options={"trial_id": 0}).read_hyperparameters()


@pytest.mark.parametrize("foreign", ["direction", "trials"])
def test_a_study_of_nobody_knows_whom_is_refused(foreign, tmp_path):
    storage = str(tmp_path / "study.log")
    direction = "minimize" if foreign == "direction" else "maximize"
    study = optuna.create_study(storage=open_storage(storage), study_name=STUDY, direction=direction)
    if foreign == "trials":
        study.tell(study.ask({"learning_rate": optuna.distributions.FloatDistribution(0, 1)}), 0.0)
    with pytest.raises(ValueError, match="study_name='study' is not allowed"):
        make_manager(storage, tmp_path).hyperparameters_optimization()
    assert not load_study(storage, STUDY).user_attrs


def test_trials_may_wait_in_a_study_before_the_first_worker(tmp_path):
    storage = str(tmp_path / "study.log")
    study = optuna.create_study(storage=open_storage(storage), study_name=STUDY, direction="maximize")
    study.enqueue_trial({"x": 0.5})
    manager = make_manager(storage, tmp_path)
    manager.objective = lambda trial: trial.suggest_float("x", 0, 1)
    manager.hyperparameters_optimization()
    assert [trial.value for trial in load_study(storage, STUDY).trials] == [0.5]


@pytest.mark.parametrize("options", [{"storage": None}, {"study_name": None}])
def test_a_trial_of_no_study_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"trial_id=0 is not allowed: .*--storage and --study-name"):
        make_manager("study.log", tmp_path, options={"trial_id": 0, **options})


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


def test_storages_studies_and_trials_that_are_not_there(tmp_path):
    storage = str(tmp_path / "study.log")
    with pytest.raises(ValueError, match="there is no such file"):
        load_study(storage, STUDY)
    manager = make_manager(storage, tmp_path)
    manager.objective = lambda trial: 0.0
    manager.hyperparameters_optimization()
    with pytest.raises(ValueError, match="study_name='x' is not allowed: the storage has study"):
        load_study(storage, "x")
    for trial_id in (0, 7, -1):  # nothing was sampled for trial 0
        with pytest.raises(ValueError, match=f"trial_id={trial_id} is not allowed: a number up to 0"):
            manager.load_trial(storage, STUDY, trial_id)


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


@pytest.mark.parametrize("n_seeds", [0, 1.5, "two"])
def test_seeds_per_trial_that_are_no_number(n_seeds, tmp_path):
    with pytest.raises(ValueError, match=f"seeds_per_trial={n_seeds!r} is not allowed: an integer >= 1"):
        make_manager(None, tmp_path, seeds_per_trial=n_seeds)
