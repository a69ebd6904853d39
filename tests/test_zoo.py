"""rl-zoo3: its literal commands, and what happens beside a user's own custom_envs."""

import argparse
import functools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from commands import Commands
from dataset_files import raw_arrays, trajectories
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_flow import FlowGPolicy, SACFlow
from sb3_flow.zoo import register
from sb3_flow.zoo.manager import FlowExperimentManager
from sb3_flow.zoo.registration import ALGORITHMS, config_of
from sb3_flow.zoo.storage import load_study

ENV = "InvertedDoublePendulum-v5"
CUBE = "cube-single-play-singletask-task1-v0"
TINY = ("-n", "60", "--num-threads", "1", "-params", "learning_starts:50", "buffer_size:1000")
TINY_ROLLOUTS = ("-n", "60", "--num-threads", "1", "-params", "n_steps:30", "batch_size:8")
for_every_algorithm = pytest.mark.parametrize("algo", list(ALGORITHMS))
# The commands that follow a training are the zoo's, and know an algorithm by its registration alone
for_two_algorithms = pytest.mark.parametrize("algo", ["sac_flow", "fql"])


@functools.cache
def commands() -> Commands:
    return Commands({"OMP_NUM_THREADS": "1"})


def run_script(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a script of a user's said in a folder."""
    (folder / "users_script.py").write_text(code)
    return commands().run(folder, "users_script", *arguments)


def zoo(folder: Path, script: str, *args: str, algo: str = "sac_flow", env: str = ENV) -> str:
    result = commands().run(folder, f"rl_zoo3.{script}", "--algo", algo, "--env", env, *args)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def trained(algo: str, path: Path) -> BaseAlgorithm:
    """A model that a command saved."""
    return ALGORITHMS[algo].algorithm.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the finished runs of `run_of` in logs/."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def run_of(folder):
    """The folder of an algorithm's finished run, which is made when a test first asks for it."""

    @functools.cache
    def run(algo: str) -> Path:
        options = ("--eval-freq", "40", "--eval-episodes", "1", "--save-freq", "30", "--save-replay-buffer")
        tiny = TINY_ROLLOUTS if algo == "reinflow" else (*TINY, "batch_size:16")
        assert str(config_of(algo)) in zoo(folder, "train", *options, *tiny, algo=algo)
        return folder / "logs" / algo / f"{ENV}_1"

    return run


@pytest.mark.slow
@for_every_algorithm
def test_train_leaves_the_model_checkpoints_and_the_best_model(run_of, algo):
    run = run_of(algo)
    for name in (ENV, "rl_model_30_steps", "rl_model_60_steps", "best_model"):
        assert (run / f"{name}.zip").is_file()


@pytest.mark.slow
@for_two_algorithms
def test_enjoy(folder, run_of, algo):
    run_of(algo)
    output = zoo(folder, "enjoy", "-f", "logs", "--no-render", "-n", "200", "--load-last-checkpoint", algo=algo)
    assert "rl_model_60_steps" in output
    assert "Mean reward" in output


@functools.cache
def can_draw() -> bool:
    code = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.slow
def test_record_video(folder, run_of):
    if not can_draw():
        pytest.skip("no EGL device")
    run = run_of("sac_flow")
    zoo(folder, "record_video", "-f", "logs", "--exp-id", "1", "-n", "20")
    (video,) = (run / "videos").glob("*.mp4")
    assert video.stat().st_size > 0


TINY_FQL = ("policy_kwargs:dict(flow_steps=2,net_arch=[8])", "horizon_length:5")
FROM_DATA = {
    "sac_flow": (
        "policy_kwargs:dict(critic='target',noise_std=0.1,d_model=8,n_layers=1,n_heads=2,net_arch=dict(qf=[8]))",
    ),
    "fql": (*TINY_FQL, "best_of_n:4", "bc_coef:None"),
}


@pytest.mark.slow
@pytest.mark.parametrize("algo", FROM_DATA)
def test_from_data_to_the_environment(algo, tmp_path):
    pytest.importorskip("ogbench")
    arrays = raw_arrays(trajectories([30]))
    for key, width in {"observations": 28, "actions": 5, "qpos": 21}.items():
        arrays[key] = np.random.default_rng(0).uniform(-0.9, 0.9, (31, width)).astype(np.float32)
    np.savez(tmp_path / "cube.npz", **arrays)
    options = ("-n", "40", "--num-threads", "1", "--eval-freq", "20", "--eval-episodes", "1", "-params")
    small = ("offline_steps:20", "batch_size:8", "buffer_size:100", *FROM_DATA[algo])
    data = f"offline_dataset:'ogbench:{CUBE}@cube.npz'"
    output = zoo(tmp_path, "train", *options, *small, data, algo=algo, env=CUBE)
    assert output.count("success_rate") == 2
    # SAC Flow's is the offline phase's, FQL fits its flow in both
    assert output.count("matching_loss") == (1 if algo == "sac_flow" else 2)
    run = tmp_path / "logs" / algo / f"{CUBE}_1"
    model = trained(algo, run / f"{CUBE}.zip")
    assert (model.num_timesteps, model._n_offline, model.horizon_length) == (40, 20, 5)
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [20, 40]

    output = zoo(tmp_path, "enjoy", "-f", "logs", "--no-render", "-n", "200", algo=algo, env=CUBE)
    assert "Mean reward: -200.00" in output
    if can_draw() and algo == "sac_flow":
        zoo(tmp_path, "record_video", "-f", "logs", "-n", "3", env=CUBE)
        (video,) = (run / "videos").glob("*.mp4")
        assert video.stat().st_size > 0


HUB = """
import os, runpy
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
os.environ["PATH"] = os.getcwd() + os.pathsep + os.environ["PATH"]
runpy.run_module("sb3_flow.zoo.push_to_hub", run_name="__main__")
"""


@pytest.mark.slow
def test_what_is_pushed_to_the_hub_is_the_model_with_a_card_and_a_video(run_of, tmp_path):
    pytest.importorskip("huggingface_sb3")
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    (tmp_path / "ffmpeg").symlink_to(ffmpeg)
    options = (
        "-f",
        str(run_of("sac_flow").parents[1]),
        "-orga",
        "me",
        "-n",
        "20",
        *(() if can_draw() else ("--no-render",)),
    )
    result = run_script(tmp_path, HUB, "--algo", "sac_flow", "--env", ENV, *options)
    assert result.returncode == 0, result.stderr
    uploaded = tmp_path / "uploaded"
    assert SACFlow.load(uploaded / f"sac_flow-{ENV}.zip").num_timesteps == 60
    card = (uploaded / "README.md").read_text()
    assert f"# **SACFlow** Agent playing **{ENV}**" in card
    assert "type: mean_reward" in card
    assert yaml.unsafe_load((uploaded / "config.yml").read_text())
    assert not can_draw() or (uploaded / "replay.mp4").stat().st_size > 0


@pytest.mark.slow
def test_continue_with_the_replay_buffer(folder, run_of):
    run = run_of("sac_flow")
    output = zoo(folder, "train", "--eval-freq", "-1", "-f", "more", "-i", str(run / f"{ENV}.zip"), *TINY)
    assert "Loading replay buffer" in output
    first = SACFlow.load(run / f"{ENV}.zip")
    second = SACFlow.load(folder / "more" / "sac_flow" / f"{ENV}_1" / f"{ENV}.zip")
    assert second._n_updates == 2 * first._n_updates > 0


def test_the_checkpoint_of_the_end_of_a_run_needs_no_learning(tmp_path, capsys):
    checkpoint = tmp_path / "rl_model_60_steps.zip"
    checkpoint.touch()
    manager = FlowExperimentManager.__new__(FlowExperimentManager)
    manager.continue_training, manager.trained_agent, manager.n_timesteps = True, str(checkpoint), 60
    manager.callbacks = [ProgressBarCallback()]  # which must not be told of an end
    manager.learn(SimpleNamespace(num_timesteps=60))
    assert capsys.readouterr().out == "60 of 60 timesteps are done\n"


@pytest.mark.slow
def test_a_checkpoint_goes_on_to_the_end_of_its_run(tmp_path):
    command = ("--save-freq", "25", "--save-replay-buffer", "--eval-freq", "30", "--eval-episodes", "1")
    command += (*TINY, "normalize:True")
    zoo(tmp_path, "train", *command)
    run = tmp_path / "logs" / "sac_flow" / f"{ENV}_1"
    assert {"rl_model_25_steps.zip", "rl_model_50_steps.zip", "rl_model_replay_buffer_50_steps.pkl"} <= {
        path.name for path in run.iterdir()
    }
    assert (run / ENV / "vecnormalize.pkl").is_file()
    output = zoo(tmp_path, "train", "-i", str(run / "rl_model_25_steps.zip"), *command)
    assert "25 of 60 timesteps are done" in output
    model = trained("sac_flow", tmp_path / "logs" / "sac_flow" / f"{ENV}_2" / f"{ENV}.zip")
    assert model.num_timesteps == 60
    model.load_replay_buffer(tmp_path / "logs" / "sac_flow" / f"{ENV}_2" / "replay_buffer.pkl")
    assert model.replay_buffer.size() == 60


@pytest.mark.slow
def test_another_policy_is_one_parameter_away(folder):
    zoo(folder, "train", "--eval-freq", "-1", "-f", "other", *TINY, "policy:'FlowGPolicy'")
    model = SACFlow.load(folder / "other" / "sac_flow" / f"{ENV}_1" / f"{ENV}.zip")
    assert isinstance(model.policy, FlowGPolicy)


@pytest.mark.slow
@for_two_algorithms
def test_optimize_with_two_seeds_a_trial_and_train_the_first_trial(tmp_path, algo):
    study = ("--storage", "study.log", "--study-name", "study")
    options = ("-optimize", "--n-trials", "2", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots")
    output = zoo(tmp_path, "train", "-f", "study", *options, *study, *TINY, "seeds_per_trial:2", algo=algo)
    assert "Number of finished trials:  2" in output
    zoo(tmp_path, "train", "--eval-freq", "-1", "-f", "trial", "--trial-id", "0", *study, *TINY, algo=algo)

    trials = load_study(str(tmp_path / "study.log"), "study").trials
    for trial in trials:
        first, second = trial.user_attrs["seeds"]
        assert first != second
        assert trial.value == trial.intermediate_values[2] == (first + second) / 2
    config = tmp_path / "trial" / algo / f"{ENV}_1" / ENV / "config.yml"
    arguments = dict(yaml.unsafe_load(config.read_text()))
    row = yaml.safe_load(config_of(algo).read_text())[ENV]
    search = ALGORITHMS[algo].search
    candidate = search.convert(trials[0].params)
    assert arguments == {**row, **candidate, "learning_starts": 50, "buffer_size": 1000}
    kept = {
        name: value
        for name, value in row["policy_kwargs"].items()
        if name not in (search.steps[0], *search.in_policy_kwargs)
    }
    assert arguments["policy_kwargs"].items() >= kept.items()


def test_own_custom_envs_shadows_ours_and_one_line_helps(tmp_path):
    command = ("rl_zoo3.train", "--algo", "sac_flow", "--help")
    own = tmp_path / "custom_envs.py"
    own.touch()
    assert "invalid choice: 'sac_flow'" in commands().run(tmp_path, *command).stderr
    own.write_text("import sb3_flow.zoo; sb3_flow.zoo.register()\n")
    assert commands().run(tmp_path, *command).returncode == 0


@pytest.mark.slow
def test_scripts_that_import_the_zoo_themselves(tmp_path):
    code = """
import sys
import sb3_flow
assert not any(name.startswith("rl_zoo3") for name in sys.modules), "importing sb3_flow has side effects"
from rl_zoo3.exp_manager import ExperimentManager  # gets to register() half imported
from rl_zoo3 import ALGOS
names = {"sac_flow": "SACFlow", "fql": "FQL", "flow_rl": "FlowRL", "qsm": "QSM", "dime": "DIME", "reinflow": "ReinFlow"}
for algo, name in names.items():
    assert ALGOS[algo] is getattr(sb3_flow, name)
from sb3_flow.zoo import register
register()
for algo in names:
    config = ExperimentManager(None, algo, "Pendulum-v1", "logs").config
    assert config.endswith(f"hyperparams/{algo}.yml") and "rl_zoo3" not in config
sys.argv[1:] = ["--algo", "sac_flow", "--help"]
import runpy
runpy.run_module("rl_zoo3.load_from_hub", run_name="__main__")
"""
    result = run_script(tmp_path, code)
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

    for algo in ALGORITHMS:
        assert config(algo) == str(config_of(algo))
        assert config(algo, config="mine.yml") == "mine.yml"
    assert config("sac").endswith("rl_zoo3/hyperparams/sac.yml")
