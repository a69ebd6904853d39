"""Studies: what is searched and trained again, and what is said when something does not fit."""

import os
import shutil
from pathlib import Path

import gymnasium as gym
import optuna
import pytest
from gymnasium import spaces
from helpers import RandomEnv
from zoo_workers import STUDY, make_manager

from sb3_flow.datasets import DataError, HorizonError
from sb3_flow.zoo.manager import SETTINGS
from sb3_flow.zoo.search import SACFlowSearch
from sb3_flow.zoo.storage import load_study, open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)
sample_sac_flow_params, convert_sac_flow_params = SACFlowSearch().sample, SACFlowSearch().convert


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


@pytest.mark.parametrize(
    ("given", "searched"),
    [
        ({"learning_rate": 5e-4}, {"bc_coef"}),
        ({"best_of_n": 8, "bc_coef": None, "normalize_q_loss": False}, set()),
    ],
)
def test_fql_s_workers_search_its_space_and_its_trials_are_trained_again(given, searched, tmp_path):
    storage = str(tmp_path / "study.log")
    manager = make_manager(storage, tmp_path, algo="fql", **given)
    trained = []

    def objective(trial):
        trained.append(manager.search.sample(trial, 1, 1, {}))
        return 0.0

    manager.objective = objective
    manager.hyperparameters_optimization()
    (arguments,) = trained
    assert arguments.keys() & {"bc_coef", "best_of_n"} == searched
    assert ("learning_rate" in arguments) == ("learning_rate" not in given)
    again = make_manager(storage, tmp_path, algo="fql", options={"trial_id": 0}, **given)
    read, _ = again.read_hyperparameters()
    assert read.items() >= {**arguments, **given}.items()


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


@pytest.mark.parametrize(("theirs", "ours"), [("sac_flow", "fql"), ("fql", "sac_flow")])
def test_a_study_of_another_algorithm_of_ours_is_refused_with_its_name(theirs, ours, tmp_path):
    storage = str(tmp_path / "study.log")
    first = make_manager(storage, tmp_path, algo=theirs)
    first.objective = lambda trial: trial.suggest_float("x", 0, 1)
    first.hyperparameters_optimization()
    message = f"^study_name='study' is not allowed: that is a study of --algo {theirs}; give another --study-name$"
    with pytest.raises(ValueError, match=message):
        make_manager(storage, tmp_path, algo=ours).hyperparameters_optimization()
    message = f"its trials are not {ours}'s; use --algo {theirs}$"
    with pytest.raises(ValueError, match=message):
        make_manager(storage, tmp_path, algo=ours, options={"trial_id": 0}).read_hyperparameters()
    assert len(load_study(storage, STUDY).trials) == 1


# --- Studies of version 0.1, whose only algorithm was sac_flow ---


def test_a_study_of_version_0_1_goes_on_and_is_sac_flow_s(tmp_path):
    storage = str(tmp_path / "study.log")
    new = make_manager(storage, tmp_path)
    new.objective = lambda trial: 0.0
    new.hyperparameters_optimization()
    attributes = load_study(storage, STUDY).user_attrs
    settings = attributes.pop(SETTINGS)
    assert settings.pop("algorithm") == "sac_flow"
    old_storage = str(tmp_path / "old.log")
    old = optuna.create_study(storage=open_storage(old_storage), study_name=STUDY, direction="maximize")
    for name, value in {**attributes, "sac_flow_settings": settings}.items():
        old.set_user_attr(name, value)
    again = make_manager(old_storage, tmp_path)
    again.objective = lambda trial: 0.0
    again.hyperparameters_optimization()
    assert len(load_study(old_storage, STUDY).trials) == 1
    for differing, message in {
        "fql": "study of --algo sac_flow",
        "sac_flow": "other settings .learning_starts.",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_manager(old_storage, tmp_path, algo=differing, learning_starts=7).hyperparameters_optimization()


def test_the_published_study_of_version_0_1_is_read(tmp_path):
    storage = str(shutil.copy(Path(__file__).parents[1] / "benchmarks/results/study/cube-single.log", tmp_path))
    options = {"study_name": "cube", "trial_id": 19}
    read, _ = make_manager(storage, tmp_path, options=options).read_hyperparameters()
    assert read["bc_coef"] == pytest.approx(347.67, abs=0.01)
    assert read["policy_kwargs"]["flow_steps"] == 10
    with pytest.raises(ValueError, match="its trials are not fql's; use --algo sac_flow"):
        make_manager(storage, tmp_path, options=options, algo="fql").read_hyperparameters()


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


@pytest.mark.parametrize("n_seeds", [0, 1.5, "two"])
def test_seeds_per_trial_that_are_no_number(n_seeds, tmp_path):
    with pytest.raises(ValueError, match=f"seeds_per_trial={n_seeds!r} is not allowed: an integer >= 1"):
        make_manager(None, tmp_path, seeds_per_trial=n_seeds)


def test_what_is_searched_reaches_a_row_s_numbers_though_the_zoo_makes_schedules_of_them(tmp_path):
    manager = make_manager(None, tmp_path, algo="reinflow", learning_rate=3.5e-6, clip_range=0.5)
    fixed = {name: str(value) for name, value in manager._hyperparams.items()}
    assert fixed["learning_rate"] != "3.5e-06"
    space = manager.search.space(fixed, manager.n_actions)
    assert space["learning_rate"].low < 3.5e-6
    assert space["clip_range"].high > 0.5


# --- Trials that fail ---


def raising(error):
    def value(trial):
        trial.suggest_categorical("horizon_length", (1, 5))
        raise error

    return value


def pruned_by(reason):
    error = optuna.TrialPruned()
    error.__cause__ = reason
    return error


def test_a_search_without_a_finished_trial_says_why_and_leaves_the_table(tmp_path):
    manager = make_manager(None, tmp_path, n_trials=2, options={"study_name": None})
    manager._value = raising(pruned_by(ValueError("rewards are NaN")))
    with pytest.raises(ValueError, match=r"None of 2 .* \(2 pruned; trial 0: rewards are NaN\). All of them are in"):
        manager.hyperparameters_optimization()
    (table,) = (tmp_path / "sac_flow").glob("report_*.csv")
    assert table.read_text().count("PRUNED") == 2


def test_a_search_that_was_interrupted_says_so(tmp_path):
    manager = make_manager(None, tmp_path, n_trials=2, options={"study_name": None})
    manager._value = raising(KeyboardInterrupt())
    with pytest.raises(ValueError, match=r"None of 1 trials finished \(1 failed or interrupted\)"):
        manager.hyperparameters_optimization()


def test_a_worker_that_is_left_no_trial_says_what_the_others_do(tmp_path):
    storage = str(tmp_path / "study.log")
    options = {"max_total_trials": 1}
    first = make_manager(storage, tmp_path, options=options)
    first._join_study(open_storage(storage))
    load_study(storage, STUDY).ask()
    with pytest.raises(ValueError, match=r"None of 1 trials finished \(1 running, or their worker was killed\)"):
        make_manager(storage, tmp_path, options=options).hyperparameters_optimization()


def test_an_argument_that_is_not_allowed_ends_the_search_with_its_own_words(tmp_path):
    manager = make_manager(None, tmp_path, n_trials=2, options={"study_name": None}, tau=7.0)
    with pytest.raises(ValueError, match=r"tau=7.0 is not allowed"):
        manager.hyperparameters_optimization()


@pytest.mark.parametrize("error", [DataError("file", "actions", "bad"), pruned_by(DataError("file", "actions", "bad"))])
def test_bad_data_end_the_search(error, tmp_path):
    manager = make_manager(str(tmp_path / "study.log"), tmp_path, n_trials=3)
    manager._value = raising(error)
    with pytest.raises(DataError, match="file: 'actions': bad"):
        manager.hyperparameters_optimization()
    assert len(load_study(str(tmp_path / "study.log"), STUDY).trials) == 1


def test_a_drawn_horizon_that_the_data_cannot_have_is_one_pruned_trial(tmp_path):
    manager = make_manager(str(tmp_path / "study.log"), tmp_path, n_trials=2)
    errors = [HorizonError("file", "ends", "too short"), None]

    def value(trial):
        trial.suggest_categorical("horizon_length", (1, 5))
        error = errors.pop(0)
        if error is not None:
            raise error
        return 1.0

    manager._value = value
    manager.hyperparameters_optimization()
    first, second = load_study(str(tmp_path / "study.log"), STUDY).trials
    assert (first.state.name, second.state.name) == ("PRUNED", "COMPLETE")
    assert "too short" in first.user_attrs["reason"]


# --- What goes together, and what does nothing ---


def test_stacked_frames_that_are_normalised_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"normalize=True is not allowed: with frame_stack .*FrameStackObservation"):
        make_manager(None, tmp_path, normalize=True, frame_stack=2)
    make_manager(None, tmp_path, normalize=True)
    make_manager(None, tmp_path, frame_stack=2)
    wrappers = [
        {"gymnasium.wrappers.FrameStackObservation": {"stack_size": 2}},
        "gymnasium.wrappers.FlattenObservation",
    ]
    manager = make_manager(None, tmp_path, normalize=True, env_wrapper=wrappers)
    assert manager.create_envs(1).observation_space.shape == (6,)


def test_what_concerns_the_environment_alone_is_not_searched_where_it_is_never_stepped(tmp_path):
    given = {"offline_dataset": "ogbench:x", "offline_steps": 500, "bc_coef": [3.0, 1.0]}
    drawn = {}

    def search(timesteps):
        manager = make_manager(str(tmp_path / f"{timesteps}.log"), tmp_path, timesteps=timesteps)
        manager._hyperparams |= given
        manager._value = lambda trial: float(len(manager.search.sample(trial, 1, 1, {})))
        manager.hyperparameters_optimization()
        drawn[timesteps] = load_study(str(tmp_path / f"{timesteps}.log"), STUDY).trials[0].params.keys()

    with pytest.warns(UserWarning, match="100 timesteps, all of them in the offline phase"):
        search(100)
    search(1000)
    assert drawn[1000] - drawn[100] == {"offline_ratio", "online_bc_coef"}
    assert "bc_coef" in drawn[100]


def test_reinflow_is_not_searched_where_it_would_only_clone(tmp_path):
    manager = make_manager(str(tmp_path / "study.log"), tmp_path, algo="reinflow", timesteps=100)
    manager._hyperparams |= {"offline_dataset": "ogbench:x", "offline_steps": 500}
    with pytest.raises(ValueError, match="n_timesteps=100 is not allowed: all of them clone data"):
        manager.hyperparameters_optimization()


# --- Journal files ---


def test_a_journal_file_needs_no_symbolic_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(1, "A required privilege is not held by the client")

    for _ in range(2):  # the second time it is there already
        manager = make_manager(str(tmp_path / "study.log"), tmp_path)
        manager._value = lambda trial: trial.suggest_float("x", 0, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "symlink", refuse)
            manager.hyperparameters_optimization()
    assert len(load_study(str(tmp_path / "study.log"), STUDY).trials) == 2
    assert [path.name for path in tmp_path.glob("*study.log*")] == ["study.log"]
