"""rl-zoo3: its literal commands, our YAML, the search space, and what happens beside a user's own custom_envs."""

import argparse
import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from dataset_files import raw_arrays, regular_arrays, trajectories
from helpers import RandomEnv

import sb3_flow.envs
from sb3_flow import FlowGPolicy, SACFlow
from sb3_flow.zoo import register
from sb3_flow.zoo.registration import CONFIG
from sb3_flow.zoo.sampler import FLOW_STEPS, GIVEN, convert_sac_flow_params, sample_sac_flow_params
from sb3_flow.zoo.storage import load_study, open_storage

ENV = "InvertedDoublePendulum-v5"
CUBE = "cube-single-play-singletask-task1-v0"
POLICIES = ("FlowTPolicy", "FlowGPolicy", "FlowMLPPolicy")
TINY = ("-n", "60", "--num-threads", "1", "-params", "learning_starts:50", "buffer_size:1000")
HYPERPARAMS = yaml.safe_load(CONFIG.read_text())


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)


def zoo(folder: Path, script: str, *args: str, env: str = ENV) -> str:
    result = python(folder, "-m", f"rl_zoo3.{script}", "--algo", "sac_flow", "--env", env, *args)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with one finished run in logs/."""
    folder = tmp_path_factory.mktemp("zoo")
    options = ("--eval-freq", "40", "--eval-episodes", "1", "--save-freq", "30", "--save-replay-buffer")
    assert str(CONFIG) in zoo(folder, "train", *options, *TINY)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return folder / "logs" / "sac_flow" / f"{ENV}_1"


def test_train_leaves_the_model_checkpoints_and_the_best_model(run):
    for name in (ENV, "rl_model_30_steps", "rl_model_60_steps", "best_model"):
        assert (run / f"{name}.zip").is_file()


def test_enjoy(folder, run):
    output = zoo(folder, "enjoy", "-f", "logs", "--no-render", "-n", "200", "--load-last-checkpoint")
    assert "rl_model_60_steps" in output
    assert "Mean reward" in output


@functools.cache
def can_draw() -> bool:
    return python(Path.cwd(), "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()").returncode == 0


def test_record_video(folder, run):
    if not can_draw():
        pytest.skip("no EGL device")
    zoo(folder, "record_video", "-f", "logs", "--exp-id", "1", "-n", "20")
    (video,) = (run / "videos").glob("*.mp4")
    assert video.stat().st_size > 0


def test_from_data_to_the_environment(tmp_path):
    pytest.importorskip("ogbench")
    arrays = raw_arrays(trajectories([30]))
    for key, width in {"observations": 28, "actions": 5, "qpos": 21}.items():
        arrays[key] = np.random.default_rng(0).uniform(-0.9, 0.9, (31, width)).astype(np.float32)
    np.savez(tmp_path / "cube.npz", **arrays)
    options = ("-n", "40", "--num-threads", "1", "--eval-freq", "20", "--eval-episodes", "1", "-params")
    policy = "policy_kwargs:dict(critic='target',noise_std=0.1,d_model=8,n_layers=1,n_heads=2,net_arch=dict(qf=[8]))"
    small = ("offline_steps:20", "batch_size:8", "buffer_size:100", policy)
    output = zoo(tmp_path, "train", *options, *small, f"offline_dataset:'ogbench:{CUBE}@cube.npz'", env=CUBE)
    assert output.count("success_rate") == 2
    assert output.count("matching_loss") == 1  # the offline phase's
    run = tmp_path / "logs" / "sac_flow" / f"{CUBE}_1"
    model = SACFlow.load(run / f"{CUBE}.zip")
    assert (model.num_timesteps, model._n_offline, model.horizon_length) == (40, 20, 5)
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [20, 40]

    assert "Mean reward: -200.00" in zoo(tmp_path, "enjoy", "-f", "logs", "--no-render", "-n", "200", env=CUBE)
    if can_draw():
        zoo(tmp_path, "record_video", "-f", "logs", "-n", "3", env=CUBE)
        (video,) = (run / "videos").glob("*.mp4")
        assert video.stat().st_size > 0


HUB = """
import runpy
from pathlib import Path
import huggingface_hub

class Hub:
    def create_repo(self, repo_id, **_):
        return repo_id
    def snapshot_download(self, repo_id, local_dir):
        Path(local_dir).mkdir(parents=True)
    def upload_folder(self, repo_id, folder_path, commit_message):
        Path(folder_path).rename("uploaded")

huggingface_hub.HfApi = Hub
runpy.run_module("sb3_flow.zoo.push_to_hub", run_name="__main__")
"""


def test_what_is_pushed_to_the_hub_is_the_model_with_a_card_and_a_video(run, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_sb3")
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    (tmp_path / "ffmpeg").symlink_to(ffmpeg)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    options = ("-f", str(run.parents[1]), "-orga", "me", "-n", "20", *(() if can_draw() else ("--no-render",)))
    result = python(tmp_path, "-c", HUB, "--algo", "sac_flow", "--env", ENV, *options)
    assert result.returncode == 0, result.stderr
    uploaded = tmp_path / "uploaded"
    assert SACFlow.load(uploaded / f"sac_flow-{ENV}.zip").num_timesteps == 60
    card = (uploaded / "README.md").read_text()
    assert f"# **SACFlow** Agent playing **{ENV}**" in card
    assert "type: mean_reward" in card
    assert yaml.unsafe_load((uploaded / "config.yml").read_text())
    assert not can_draw() or (uploaded / "replay.mp4").stat().st_size > 0


def test_continue_with_the_replay_buffer(folder, run):
    output = zoo(folder, "train", "--eval-freq", "-1", "-f", "more", "-i", str(run / f"{ENV}.zip"), *TINY)
    assert "Loading replay buffer" in output
    first = SACFlow.load(run / f"{ENV}.zip")
    second = SACFlow.load(folder / "more" / "sac_flow" / f"{ENV}_1" / f"{ENV}.zip")
    assert second._n_updates == 2 * first._n_updates > 0


def test_another_policy_is_one_parameter_away(folder):
    zoo(folder, "train", "--eval-freq", "-1", "-f", "other", *TINY, "policy:'FlowGPolicy'")
    model = SACFlow.load(folder / "other" / "sac_flow" / f"{ENV}_1" / f"{ENV}.zip")
    assert isinstance(model.policy, FlowGPolicy)


def test_optimize_with_two_seeds_a_trial_and_train_the_first_trial(folder):
    study = ("--storage", "study.log", "--study-name", "study")
    search = ("-optimize", "--n-trials", "2", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots")
    output = zoo(folder, "train", "-f", "study", *search, *study, *TINY, "seeds_per_trial:2")
    assert "Number of finished trials:  2" in output
    zoo(folder, "train", "--eval-freq", "-1", "-f", "trial", "--trial-id", "0", *study, *TINY)

    for trial in load_study(str(folder / "study.log"), "study").trials:
        first, second = trial.user_attrs["seeds"]
        assert first != second
        assert trial.value == trial.intermediate_values[2] == (first + second) / 2
    trial = load_study(str(folder / "study.log"), "study").trials[0]
    config = folder / "trial" / "sac_flow" / f"{ENV}_1" / ENV / "config.yml"
    trained = dict(yaml.unsafe_load(config.read_text()))
    expected = {**HYPERPARAMS[ENV], **convert_sac_flow_params(trial.params), "learning_starts": 50, "buffer_size": 1000}
    assert trained == expected
    assert trained["policy_kwargs"].items() >= HYPERPARAMS[ENV]["policy_kwargs"].items()


def test_own_custom_envs_shadows_ours_and_one_line_helps(tmp_path):
    command = ("-m", "rl_zoo3.train", "--algo", "sac_flow", "--help")
    own = tmp_path / "custom_envs.py"
    own.touch()
    assert "invalid choice: 'sac_flow'" in python(tmp_path, *command).stderr
    own.write_text("import sb3_flow.zoo; sb3_flow.zoo.register()\n")
    assert python(tmp_path, *command).returncode == 0


def test_scripts_that_import_the_zoo_themselves(tmp_path):
    script = """
import sys
import sb3_flow
assert not any(name.startswith("rl_zoo3") for name in sys.modules), "importing sb3_flow has side effects"
from rl_zoo3.exp_manager import ExperimentManager  # gets to register() half imported
from rl_zoo3 import ALGOS
assert ALGOS["sac_flow"] is sb3_flow.SACFlow
from sb3_flow.zoo import register
register()
config = ExperimentManager(None, "sac_flow", "Pendulum-v1", "logs").config
assert config.endswith("hyperparams/sac_flow.yml") and "rl_zoo3" not in config
sys.argv[1:] = ["--algo", "sac_flow", "--help"]
import runpy
runpy.run_module("rl_zoo3.load_from_hub", run_name="__main__")
"""
    result = python(tmp_path, "-c", script)
    assert result.returncode == 0, result.stderr
    assert "sac_flow" in result.stdout


def test_register_twice_changes_nothing(tmp_path):
    from rl_zoo3 import ALGOS
    from rl_zoo3.exp_manager import ExperimentManager

    register()
    algos, new = dict(ALGOS), ExperimentManager.__new__
    register()
    assert algos == ALGOS
    assert ExperimentManager.__new__ is new

    def config(algo, **kwargs):
        return ExperimentManager(argparse.Namespace(), algo, "Pendulum-v1", str(tmp_path), **kwargs).config

    assert config("sac_flow") == str(CONFIG)
    assert config("sac_flow", config="mine.yml") == "mine.yml"
    assert config("sac").endswith("rl_zoo3/hyperparams/sac.yml")


@pytest.mark.parametrize("entry", [entry for entry in HYPERPARAMS if "offline_dataset" not in HYPERPARAMS[entry]])
def test_every_entry_of_the_yaml_constructs_every_policy(entry):
    hyperparams = copy.deepcopy(HYPERPARAMS[entry])
    assert hyperparams.pop("n_timesteps") >= 1
    env = "Pendulum-v1" if entry == "default" else entry
    for policy in POLICIES:
        SACFlow(env=env, **{**hyperparams, "policy": policy, "buffer_size": 10})


@pytest.mark.parametrize("entry", [entry for entry in HYPERPARAMS if "offline_dataset" in HYPERPARAMS[entry]])
def test_every_offline_entry_names_its_own_environment_and_data(entry):
    sb3_flow.envs.register()
    assert entry in gym.registry
    suite, _, name = HYPERPARAMS[entry]["offline_dataset"].partition(":")
    assert suite in ("ogbench", "robomimic")
    assert name == entry or "{}-{}-low_dim-v0".format(*name.split("/")) == entry


def test_every_environment_of_ours_has_an_entry():
    sb3_flow.envs.register()
    ours = {env for env, spec in gym.registry.items() if str(spec.entry_point).startswith("sb3_flow.envs")}
    assert len(ours) > 40
    assert ours <= set(HYPERPARAMS)


def test_offline_entries_construct_every_policy_and_have_the_papers_weights():
    data = regular_arrays(trajectories([20]))
    for task, bc_coef in {
        "scene-play-singletask-task2-v0": 300,
        "cube-double-play-singletask-task5-v0": 300,
        "cube-triple-play-singletask-v0": 100,
        "cube-quadruple-play-100m-singletask-task1-v0": 100,
        "square-mh-low_dim-v0": [10_000, 1_000],
    }.items():
        hyperparams = copy.deepcopy(HYPERPARAMS[task])
        assert hyperparams.pop("n_timesteps") == 2 * hyperparams["offline_steps"] == 2e6
        assert hyperparams["bc_coef"] == bc_coef
        for policy in POLICIES:
            small = {"policy": policy, "buffer_size": 10, "offline_dataset": data}
            assert SACFlow(env=RandomEnv(), **{**hyperparams, **small}).horizon_length == 5


def test_paper_settings():
    tasks = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup")
    paper = {
        "n_timesteps": 1e6,
        "policy": "FlowTPolicy",
        "batch_size": 512,
        "buffer_size": 1_000_000,
        "gamma": 0.99,
        "learning_starts": 50_000,
        "ent_coef": "auto_0.2",
    }
    for version in ("v4", "v5"):
        for task in tasks:
            assert HYPERPARAMS[f"{task}-{version}"] == paper


OFFLINE = {"offline_dataset": "ogbench:x", "ent_coef": "0.0", "policy": "FlowGPolicy"}
# For each case what is searched and what is not
SPACES = {
    "from scratch": (
        {"net_arch": {"qf": [8]}},
        {"policy": "FlowTPolicy"},
        {"d_model", "n_layers", "highest_log_std", "target_entropy", "initial_ent_coef"},
        {"bc_coef", "noise_std"},
    ),
    "chunks": (
        {"log_std_range": [-4, -0.5]},
        {"policy": "FlowMLPPolicy", "horizon_length": "3"},
        {"highest_log_std", "target_entropy"},
        {"d_model", "n_layers", "offline_ratio"},
    ),
    "path": ({"likelihood": "path"}, {"policy": "FlowGPolicy"}, {"initial_ent_coef"}, {"target_entropy"}),
    "fixed sigma": ({"noise_std": 0.1}, {"policy": "FlowGPolicy"}, {"noise_std"}, {"target_entropy"}),
    "offline": (
        {"noise_std": 0.1, "critic": "target"},
        OFFLINE,
        {"bc_coef", "offline_ratio", "noise_std"},
        {"d_model", "initial_ent_coef", "target_entropy", "online_bc_coef"},
    ),
    "given on the command line": (
        {"noise_std": 0.1},
        {
            **OFFLINE,
            "horizon_length": "5",
            GIVEN: "batch_size bc_coef gamma horizon_length learning_rate noise_std policy_kwargs",
        },
        {"offline_ratio", "flow_steps", "qf_learning_rate", "policy_kwargs"},
        {"noise_std", "bc_coef", "one_minus_gamma", "batch_size_pow", "learning_rate"},
    ),
    "target entropy given": (
        {},
        {"policy": "FlowTPolicy", GIVEN: "d_model target_entropy"},
        {"n_layers", "highest_log_std", "initial_ent_coef"},
        {"target_entropy", "n_actions", "d_model"},
    ),
    "little room for sigma": ({"log_std_range": [-0.5, 0.0]}, {"policy": "FlowMLPPolicy"}, {"highest_log_std"}, set()),
    "two weights": ({}, {**OFFLINE, "bc_coef": "[10000.0, 1000.0]"}, {"bc_coef", "online_bc_coef"}, set()),
}


def pendulum_data():
    arrays = regular_arrays(trajectories([20]))
    return {**arrays, "actions": arrays["actions"][:, :1]}


@pytest.mark.parametrize(
    ("kept", "yaml_values", "searched", "not_searched", "storage"),
    [
        *((*space, "{}/study.log") for space in SPACES.values()),
        (*SPACES["offline"], "sqlite:///{}/study.db"),
    ],
    ids=[*SPACES, "database"],
)
def test_sampled_parameters_survive_the_study_and_keep_policy_kwargs(
    kept, yaml_values, searched, not_searched, storage, tmp_path
):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage.format(tmp_path)
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), storage=open_storage(url), study_name="study"
    )
    # What rl_zoo3 does
    for key, value in {"policy_kwargs": str(kept), **yaml_values}.items():
        study.set_user_attr(key, value)
    for _ in range(3):
        trial = study.ask()
        sampled = sample_sac_flow_params(trial, 1, 1, {})
        params = load_study(url, "study").trials[trial.number].params
        assert sampled == convert_sac_flow_params(params)
        assert params.keys() >= searched
        assert not params.keys() & not_searched
        for name in kept.keys() - {"noise_std", "log_std_range"}:
            assert sampled["policy_kwargs"][name] == kept[name]
        data = {"offline_dataset": pendulum_data()} if "offline_ratio" in sampled else {}
        model = SACFlow(yaml_values["policy"], "Pendulum-v1", **{**sampled, **data, "buffer_size": 20})
        assert model.policy.flow_steps in FLOW_STEPS
        for name, value in sampled["policy_kwargs"].items():
            assert getattr(model.policy, "critic_name" if name == "critic" else name) == value
        for name in sampled.keys() - {"policy_kwargs"}:
            assert getattr(model, name) == sampled[name]
        if "target_entropy" in searched:
            assert -2 <= model.target_entropy / model.policy.chunk_dim <= -0.75


def test_policy_kwargs_that_a_study_cannot_store_are_refused():
    study = optuna.create_study()
    study.set_user_attr("policy_kwargs", str({"optimizer_class": dict}))
    with pytest.raises(ValueError, match="cannot be tuned around"):
        sample_sac_flow_params(study.ask(), 1, 1, {})
