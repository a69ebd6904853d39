"""The YAMLs: every row constructs, offline rows name their own data, and the numbers are the papers'."""

import argparse
import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from dataset_files import regular_arrays, trajectories
from helpers import RandomEnv, warned
from rl_zoo3.exp_manager import ExperimentManager

import sb3_flow.envs
from sb3_flow import DIME, FQL, QSM, ReinFlow, SACFlow
from sb3_flow.zoo import register
from sb3_flow.zoo.manager import FlowExperimentManager
from sb3_flow.zoo.registration import ALGORITHMS, config_of

POLICIES = {"sac_flow": ("FlowTPolicy", "FlowGPolicy", "FlowMLPPolicy")}  # of those that have several
HYPERPARAMS: dict[str, dict[str, Any]] = {algo: yaml.safe_load(config_of(algo).read_text()) for algo in ALGORITHMS}


def rows(offline: bool) -> list[tuple[str, str]]:
    """Algorithm and name of every row with or without data."""
    return [
        (algo, entry)
        for algo, entries in HYPERPARAMS.items()
        for entry in entries
        if offline == ("offline_dataset" in entries[entry])
    ]


@pytest.mark.parametrize(("algo", "entry"), rows(offline=False))
def test_every_entry_of_the_yaml_constructs_every_policy(algo, entry):
    hyperparams = copy.deepcopy(HYPERPARAMS[algo][entry])
    assert hyperparams.pop("n_timesteps") >= 1
    env = "Pendulum-v1" if entry == "default" else entry
    small = {"buffer_size": 10} if algo != "reinflow" else {}
    for policy in POLICIES.get(algo, (hyperparams["policy"],)):
        ALGORITHMS[algo].algorithm(env=env, **{**hyperparams, "policy": policy, **small})


@pytest.mark.parametrize(("algo", "entry"), rows(offline=True))
def test_every_offline_entry_names_its_own_environment_and_data(algo, entry):
    sb3_flow.envs.register()
    assert entry in gym.registry
    suite, _, name = HYPERPARAMS[algo][entry]["offline_dataset"].partition(":")
    assert suite in ("ogbench", "robomimic", "minari")
    if suite == "minari":
        assert entry.lower() == f"{name.split('/')[1]}-v5"
    else:
        assert name == entry or "{}-{}-low_dim-v0".format(*name.split("/")) == entry


@pytest.mark.parametrize(
    ("algo", "task", "is_warned"),
    [
        ("qsm", "cube-single-play-singletask-task1-v0", True),
        ("reinflow", "Hopper-v4", True),
        ("reinflow", "lift-mh-low_dim-v0", False),
        ("qsm", "cube-double-play-singletask-task1-v0", False),
        ("dime", "Hopper-v4", False),
    ],
)
def test_a_run_that_one_would_take_for_one_from_data_is_pointed_out(
    algo: str, task: str, is_warned: bool, tmp_path: Path
) -> None:
    register()
    manager = ExperimentManager(argparse.Namespace(), algo, task, str(tmp_path))
    said = [message for message in warned(manager.read_hyperparameters) if "learns from scratch there" in message]
    assert len(said) == is_warned
    assert all(message.startswith(f"{algo}.yml has no data for {task}") for message in said)


@pytest.mark.parametrize("algo", ["sac_flow", "fql"])  # those that learn from data
def test_every_environment_of_ours_has_an_entry(algo):
    sb3_flow.envs.register()
    ours = {env for env, spec in gym.registry.items() if str(spec.entry_point).startswith("sb3_flow.envs")}
    assert len(ours) > 40
    assert ours <= set(HYPERPARAMS[algo])


# bc_coef of SAC Flow and of FQL
WEIGHTS = {
    "cube-single-play-singletask-task1-v0": (300, 300),
    "scene-play-singletask-task2-v0": (300, 300),
    "cube-double-play-singletask-task5-v0": (300, 300),
    "cube-triple-play-singletask-v0": (100, 300),
    "cube-quadruple-play-100m-singletask-task1-v0": (100, 300),
    "square-mh-low_dim-v0": ([10_000, 1_000], 10_000),
}


def offline_row(algo: str, task: str) -> dict[str, Any]:
    """A row's arguments, with tiny data and a tiny buffer."""
    hyperparams = copy.deepcopy(HYPERPARAMS[algo][task])
    assert hyperparams.pop("n_timesteps") == 2 * hyperparams["offline_steps"] == 2e6
    return {**hyperparams, "buffer_size": 10, "offline_dataset": regular_arrays(trajectories([20]))}


@pytest.mark.parametrize(("task", "weights"), WEIGHTS.items())
def test_offline_entries_construct_every_policy_and_have_the_papers_weights(task, weights):
    hyperparams = offline_row("sac_flow", task)
    assert hyperparams["bc_coef"] == weights[0]
    for policy in POLICIES["sac_flow"]:
        assert SACFlow(env=RandomEnv(), **{**hyperparams, "policy": policy}).horizon_length == 5


@pytest.mark.parametrize(("task", "weights"), WEIGHTS.items())
def test_fql_s_offline_entries_are_fql_and_one_or_two_arguments_away_from_qc(task, weights):
    hyperparams = offline_row("fql", task)
    fql = FQL(env=RandomEnv(), **hyperparams)
    assert (fql.horizon_length, fql.best_of_n, fql.bc_coef) == (1, None, weights[1])
    qc = FQL(env=RandomEnv(), **{**hyperparams, "horizon_length": 5, "best_of_n": 32, "bc_coef": None})
    assert qc.policy.chunk_dim == 10
    qc_fql = FQL(env=RandomEnv(), **{**hyperparams, "horizon_length": 5, "bc_coef": 100})
    assert qc_fql.policy.chunk_dim == 10


def test_fql_s_paper_settings():
    paper = {"batch_size": 256, "learning_rate": 3e-4, "gamma": 0.99, "tau": 0.005, "offline_steps": 1_000_000}
    for algo, entry in rows(offline=True):
        if algo == "fql":
            assert HYPERPARAMS[algo][entry].items() >= paper.items()


def test_dime_s_paper_settings():
    for task in ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup"):
        row = copy.deepcopy(HYPERPARAMS["dime"][f"{task}-v4"])
        assert row.pop("n_timesteps") == 1e6
        model = DIME(env="Pendulum-v1", **{**row, "buffer_size": 10})
        assert (model.batch_size, model.gradient_steps, model.policy_delay) == (256, 2, 3)
        assert (model.learning_rate, model.qf_lr_schedule(1), model.gamma) == (3e-4, 3e-4, 0.99)
        assert (model.policy.diffusion_steps, model.target_entropy) == (16, -4.0)


# Bounds of sigma, learning rates of the actor and the value net, rollouts from which only the latter learns
REINFLOW = {
    "Hopper-v5": ((0.10, 0.24), 4.5e-5, 6.5e-4, 0),
    "Walker2d-v5": ((0.10, 0.24), 4e-4, 4e-3, 5),
    "HalfCheetah-v5": ((0.10, 0.24), 3e-5, 3e-4, 10),
    "Ant-v5": ((0.08, 0.16), 4.5e-5, 6.5e-4, 0),
    "Humanoid-v5": ((0.08, 0.16), 4.5e-5, 6.5e-4, 0),
    "lift-mh-low_dim-v0": ((0.08, 0.14), 2e-5, 6.5e-4, 2),
    "square-ph-low_dim-v0": ((0.08, 0.14), 3.5e-6, 4.5e-4, 2),
}


@pytest.mark.parametrize(("task", "settings"), REINFLOW.items())
def test_reinflow_s_entries_have_its_authors_settings(task, settings):
    row = copy.deepcopy(HYPERPARAMS["reinflow"][task])
    rollouts = (row.pop("n_timesteps") - row["offline_steps"]) / (row.pop("n_envs") * row["n_steps"])
    assert row.pop("normalize")
    published = {"Humanoid-v5": 200, "lift-mh-low_dim-v0": 81, "square-ph-low_dim-v0": 300}.get(task, 1000)
    assert rollouts == pytest.approx(published, rel=0.01)
    row["policy_kwargs"]["net_arch"] = [8]
    model = ReinFlow(env=RandomEnv(), **{**row, "offline_dataset": regular_arrays(trajectories([20]))})
    rates = (model.learning_rate, model.vf_learning_rate, model.critic_warmup)
    assert (model.policy.noise_std_range, *rates) == settings
    assert (model.policy.flow_steps, model.clip_range, model.gae_lambda) == (4, 0.01, 0.95)
    of_a_chunk = 0.99 if "-v5" in task else 0.999
    assert model.gamma**model.horizon_length == pytest.approx(of_a_chunk, abs=5e-4)


MUJOCO = {
    "sac_flow": {
        "n_timesteps": 1e6,
        "policy": "FlowTPolicy",
        "batch_size": 512,
        "buffer_size": 1_000_000,
        "gamma": 0.99,
        "learning_starts": 50_000,
        "ent_coef": "auto_0.2",
    },
    "flow_rl": {
        "n_timesteps": 1e6,
        "policy": "FlowRLPolicy",
        "learning_rate": 3e-4,
        "batch_size": 256,
        "buffer_size": 1_000_000,
        "learning_starts": 5_000,
        "gamma": 0.99,
        "tau": 0.005,
        "policy_delay": 2,
        "bc_coef": 0.1,
        "expectile": 0.9,
    },
    "qsm": {
        "n_timesteps": 1e6,
        "policy": "QSMPolicy",
        "learning_rate": 3e-4,
        "batch_size": 256,
        "buffer_size": 1_000_000,
        "learning_starts": 10_000,
        "gamma": 0.99,
        "tau": 0.005,
        "exploration_noise": 0.1,
    },
}


# M_q and alpha of QSM with data
QSM_WEIGHTS = {
    "cube-double-play-singletask-task2-v0": (1.0, 10.0),
    "cube-triple-play-singletask-v0": (10.0, 10.0),
    "cube-quadruple-play-100m-singletask-task3-v0": (1.0, 10.0),
    "scene-sparse-play-singletask-task1-v0": (3.0, 30.0),
    "puzzle-3x3-sparse-play-singletask-task5-v0": (10.0, 30.0),
    "puzzle-4x4-sparse-play-100m-singletask-v0": (10.0, 1.0),
}


@pytest.mark.parametrize(("task", "weights"), QSM_WEIGHTS.items())
def test_qsm_s_offline_entries_have_the_published_weights(task, weights):
    hyperparams = copy.deepcopy(HYPERPARAMS["qsm"][task])
    assert hyperparams.pop("n_timesteps") == 1.5 * hyperparams["offline_steps"] == 1.5e6
    hyperparams["policy_kwargs"]["net_arch"] = [8]
    data = regular_arrays(trajectories([20]))
    model = QSM(env=RandomEnv(), **{**hyperparams, "buffer_size": 10, "offline_dataset": data})
    assert (model.q_coef, model.bc_coef, model.horizon_length) == (*weights, 5)
    assert (model.start_training, model.exploration_noise) == (5_000, 0.0)
    assert (model.policy.n_critics, model.policy.diffusion_steps) == (10, 10)


@pytest.mark.parametrize(("algo", "settings"), MUJOCO.items())
def test_published_settings_from_scratch(algo, settings):
    tasks = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup")
    for version in ("v4", "v5"):
        for task in tasks:
            assert HYPERPARAMS[algo][f"{task}-{version}"] == settings


def test_every_learning_rate_may_fall():
    rates = {"learning_rate": "lin_1e-3", "qf_learning_rate": "lin_2e-3", "vf_learning_rate": "lin_4e-3"}
    read = FlowExperimentManager._preprocess_schedules(dict(rates))
    assert [read[name](0.5) for name in rates] == [5e-4, 1e-3, 2e-3]
    del read["vf_learning_rate"]  # ReinFlow's
    small = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 10}
    model = SACFlow("FlowMLPPolicy", RandomEnv(), **small, **read)
    assert model.qf_lr_schedule(0.25) == 5e-4
    kept = FlowExperimentManager._preprocess_schedules({"qf_learning_rate": "1e-3"})
    with pytest.raises(ValueError, match=r"in YAML write 0\.001"):
        SACFlow("FlowMLPPolicy", RandomEnv(), **small, **kept)
