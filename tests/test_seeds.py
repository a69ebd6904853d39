"""Trials of several seeds."""

import multiprocessing as mp
import threading

import optuna
import pytest
from optuna.trial import TrialState

from sb3_flow.zoo.seeds import mean_of_seeds

optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    before = set(threading.enumerate())  # the compiler's, where another test has compiled in this process

    def train(trial, seed):
        trial.report(0.0, 0)
        if seed == 1:
            raise error
        trial.report(0.0, 1)
        return 0.0

    with pytest.raises(error):
        mean_of_seeds(train, study.ask(), 3)
    assert not any(thread.name.startswith("ThreadPool") for thread in set(threading.enumerate()) - before)


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
