"""Every reproduction command at its smallest scale, sweeps that go on, and arguments that are refused."""

import dataclasses
import importlib
import os
import queue
import re
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
import yaml
from dataset_files import pendulum_arrays

pytest.importorskip("matplotlib")
pytest.importorskip("ogbench")

import contenders
import end_to_end
import gradient_norms
import learning
import page
import reproduce
import scores
import train_step

from sb3_flow import SACFlow
from sb3_flow.zoo.registration import CONFIG


def run(monkeypatch, script, *args):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    script.main()


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """Checkpoints go into the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(scores, "REPS", 50)


FILES = {
    "from_scratch": ["summary.csv", "from_scratch.png", "from_scratch_profiles.png", "from_scratch_improvement.png"],
    "offline_to_online": [
        "summary.csv",
        "offline_to_online.png",
        "offline_to_online_profiles.png",
        "cube-single.npz",
    ],
    "gradient_norms": ["gradient_norms.csv", "gradient_norms_Hopper-v4.png"],
    "k_ablation": ["summary.csv", "k_ablation.png", "k_ablation_profiles.png", "k_ablation_final.png"],
    "velocity_ablation": ["summary.csv", "velocity_ablation.png", "velocity_ablation_profiles.png"],
}


class InThisProcess:
    """Stands in for `LocalPool`: the runs of a figure need no import of their own."""

    slots = 1

    def __init__(self, jobs):
        self.progress = queue.Queue()

    def start(self, train, run):
        train(run, self.progress)

    def outcome(self, handle):
        return ""


@pytest.fixture
def norms_in_this_process(monkeypatch):
    threads = SimpleNamespace(Pool=lambda jobs, **_: ThreadPool(1))
    monkeypatch.setattr(gradient_norms.mp, "get_context", lambda _: threads)


@pytest.mark.slow
@pytest.mark.parametrize("figure", reproduce.FIGURES)
def test_smoke(figure, in_tmp_path, norms_in_this_process, monkeypatch):
    monkeypatch.setattr(learning, "LocalPool", InThisProcess)
    run(monkeypatch, reproduce, figure, "--scale", "smoke", "--out", "results")
    folder = in_tmp_path / "results" / f"{figure}_smoke"
    for name in FILES[figure]:
        assert (folder / name).stat().st_size > 0
    html = (in_tmp_path / "results" / "index.html").read_text()
    assert f"reproduce {figure} --scale smoke" in html
    assert html.count("<img") == sum(name.endswith(".png") for name in FILES[figure])
    csvs = {path: path.read_text() for path in folder.rglob("*.csv")}
    assert len(csvs) > 1 or figure == "gradient_norms"
    # Given again, the command finds everything done
    run(monkeypatch, reproduce, figure, "--scale", "smoke", "--out", "results")
    assert {path: path.read_text() for path in folder.rglob("*.csv")} == csvs


@pytest.fixture
def asked_for(in_tmp_path, monkeypatch):
    """What a figure's command at the scale of the paper would train."""
    asked = []
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: asked.extend(runs))
    for drawing in ("report", "plot_by_variant", "write_page"):
        monkeypatch.setattr(reproduce, drawing, lambda *_, **__: None)
    for drawing in ("print_table", "plot"):
        monkeypatch.setattr(gradient_norms, drawing, lambda *_: None)
    monkeypatch.setattr(gradient_norms, "measure_all", lambda budget, *_: asked.append(budget))

    def command(figure, *args):
        asked.clear()
        run(monkeypatch, reproduce, figure, "--scale", "paper", *args)
        return list(asked)

    return command


# SAC Flow's density (Eq. 15), target entropy and bounds of log sigma; not read from the scale or the YAML
PAPER = {"target_entropy": 0.0, "policy_kwargs": {"likelihood": "path", "log_std_range": [-5, 2]}}
MUJOCO = {f"{name}-v4" for name in ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup")}


@pytest.mark.parametrize("figure", ["from_scratch", "offline_to_online", "velocity_ablation", "gradient_norms"])
def test_ours_are_compiled_and_on_the_device_that_is_asked_for(figure, asked_for):
    plain = asked_for(figure)
    for run, before in zip(asked_for(figure, "--compile", "--device", "cuda"), plain, strict=True):
        theirs = getattr(run, "algo", "") in contenders.THEIRS
        added = {} if theirs else {"compile": True, "device": "cuda"}
        assert run.overrides == {**before.overrides, **added}


def test_the_scale_paper_is_the_papers_from_scratch(asked_for):
    runs = asked_for("from_scratch")
    assert {run.task for run in runs} == MUJOCO
    assert {run.algo for run in runs} >= {"flow_t", "dime", "flow_rl", "qsm", "crossq", "sac", "ppo"}
    assert all(
        run.overrides == (PAPER if run.algo.startswith("flow_t") or run.algo == "flow_g" else {}) for run in runs
    )
    for algo in ("flow_t", "crossq"):
        model = learning.make_model(next(run for run in runs if run.algo == algo))
        assert (model.learning_starts, model.batch_size, model.buffer_size) == (50_000, 512, 1_000_000)
        assert (model.gamma, model.ent_coef) == (0.99, "auto_0.2" if algo == "flow_t" else "auto")
        assert model.target_entropy == (0.0 if algo == "flow_t" else -3.0)
        assert model.policy.net_arch["qf"] == [1024, 1024]
    assert {run.steps for run in runs} == {1_000_000}
    assert {run.seed for run in runs} == set(range(1, 11))


def test_the_scale_paper_is_the_papers_in_the_ablations(asked_for):
    kwargs = PAPER["policy_kwargs"]
    by_k = {run.algo: run.overrides for run in asked_for("k_ablation")}
    assert by_k == {f"flow_t+K{k}": {**PAPER, "policy_kwargs": {**kwargs, "flow_steps": k}} for k in (1, 4, 7, 10)}
    assert all(run.overrides == PAPER for run in asked_for("velocity_ablation"))
    (budget,) = asked_for("gradient_norms")
    assert budget.overrides == PAPER
    # The user's come last
    (budget,) = asked_for("gradient_norms", "--overrides", '{"policy_kwargs": {"likelihood": "action"}}')
    assert budget.overrides == {**PAPER, "policy_kwargs": {**kwargs, "likelihood": "action"}}


def test_the_scale_paper_is_the_papers_with_data():
    scale = reproduce.SCALES["paper"]
    settings = yaml.safe_load(CONFIG.read_text())
    assert len(scale.offline_tasks) == 4 * 5 + 3
    for task in scale.offline_tasks:
        overrides = reproduce.paper_offline_run(task, "flow_t", 1, None, None).overrides
        assert {**overrides, "policy_kwargs": settings[task]["policy_kwargs"]}.items() <= settings[task].items()
        assert overrides["policy_kwargs"] == {"critic": "target", "noise_std": 0.1, "net_arch": {"qf": [512] * 4}}


@pytest.mark.parametrize(
    ("algo", "expected"),
    [
        ("fql", {"horizon_length": 1, "bc_coef": 300.0, "start_training": 0}),
        ("qc_fql", {"horizon_length": 5, "bc_coef": 300.0, "start_training": 5_000}),
        ("qc", {"horizon_length": 5, "bc_coef": None, "best_of_n": 32, "start_training": 5_000}),
    ],
)
def test_the_scale_paper_is_fqls_and_q_chunkings_with_data(algo, expected):
    task = "cube-double-play-singletask-task2-v0"
    run = reproduce.paper_offline_run(task, algo, 1, None, None)
    assert expected.items() <= {"start_training": 0, **run.overrides}.items()
    assert run.overrides["policy_kwargs"] == {"net_arch": {"qf": [512] * 4}}  # the actor's are the default
    assert (run.steps, run.batch_size, run.overrides["offline_steps"]) == (2_000_000, 256, 1_000_000)
    model = learning.make_model(dataclasses.replace(run, overrides=run.overrides | WITHOUT_DATA))
    assert (model.horizon_length, model.best_of_n) == (expected["horizon_length"], expected.get("best_of_n"))
    assert model.learning_rate == 3e-4


def test_reinflow_is_compared_on_robomimic_alone_with_its_own_settings(asked_for):
    tasks = ("cube-double-play-singletask-task1-v0", "square-mh-low_dim-v0", "lift-mh-low_dim-v0")
    runs = asked_for("offline_to_online", "--seeds", "1", "--tasks", *tasks)
    assert {run.algo for run in runs if run.task == tasks[0]} >= {"fql", "qc_fql"}
    runs = [run for run in runs if run.algo == "reinflow"]
    assert [run.task for run in runs] == ["square-mh-low_dim-v0", "lift-mh-low_dim-v0"]
    assert runs[0].overrides["n_envs"] == 50
    model = learning.make_model(dataclasses.replace(runs[0], task="Pendulum-v1", overrides=runs[0].overrides | FREE))
    assert (model.n_envs, model.n_steps, model.batch_size, model.horizon_length) == (2, 2_000, 7_500, 5)
    assert model.get_vec_normalize_env().norm_reward
    assert not model.get_vec_normalize_env().norm_obs
    assert model.get_vec_normalize_env().gamma == model.gamma == 0.9998


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "HumanoidStandup-v4", "Ant-v4"])
def test_ppo_has_the_zoos_settings_and_256_wide_nets(task):
    row = learning.settings_of(make_run("results", algo="ppo", task=task))
    assert row["normalize"] is True
    assert row["policy_kwargs"]["net_arch"] == {"pi": [256, 256], "vf": [16, 16]}
    tuned = task != "Ant-v4"
    assert (row.get("n_steps", 2048), "log_std_init" in row["policy_kwargs"]) == (512 if tuned else 2048, tuned)


def test_the_weight_of_qc_fql_is_that_of_the_papers_comparison():
    names = ("cube-double-play-singletask-v0", "cube-triple-play-singletask-v0", "lift-mh-low_dim-v0")
    assert [reproduce.qc_fql_alpha(name) for name in names] == [300, 100, 10_000]


FREE = {"offline_dataset": None, "offline_steps": 0, "n_envs": 2}
WITHOUT_DATA = {
    "env": "Pendulum-v1",
    "offline_dataset": None,
    "offline_steps": 0,
    "start_training": 0,
    "buffer_size": 100,
}


def test_overrides_reach_into_policy_kwargs():
    first = {"bc_coef": 1.0, "policy_kwargs": {"flow_steps": 7}}
    second = {"bc_coef": 2.0, "policy_kwargs": {"likelihood": "path"}}
    assert contenders.merged(first, second, {}) == {
        "bc_coef": 2.0,
        "policy_kwargs": {"flow_steps": 7, "likelihood": "path"},
    }


def test_gradient_norms_are_those_of_one_transition():
    kwargs = {"flow_steps": 3, "net_arch": {"qf": [16, 16]}, "d_model": 16}
    model = SACFlow("FlowTPolicy", "Pendulum-v1", learning_starts=10, batch_size=8, policy_kwargs=kwargs, seed=0)
    model.learn(30)
    np.random.seed(0)
    th.manual_seed(0)
    norms = gradient_norms.step_gradient_norms(model, 32)
    np.random.seed(0)
    th.manual_seed(0)
    obs = model._sample(32).observations
    squares = 0.0
    for i, noise in enumerate(model.actor.sample_noise(32).unbind(dim=1)):
        noise = noise.unsqueeze(1).requires_grad_(True)
        path = model.actor.path(obs[i : i + 1], noise)
        q = model.critic.reduce(model.critic(obs[i : i + 1], th.tanh(path.x)))
        (model.log_ent_coef.exp() * path.log_prob - q).backward()
        squares += noise.grad[0].square().sum().item()
    assert len(norms) == 4
    assert norms[0] == pytest.approx(np.sqrt(squares / 32), rel=1e-4)


def test_gradient_norms_of_a_run_with_overrides():
    budget = gradient_norms.Budget(
        "Pendulum-v1", 40, 20, 10, width=16, batch_size=8, overrides={"policy_kwargs": {"flow_steps": 2}}
    )
    rows = gradient_norms.measure(budget, "Flow-G", flow_steps=4, seed=0)
    assert [(row["step"], row["i"]) for row in rows] == [(20, 0), (20, 1), (20, 2), (40, 0), (40, 1), (40, 2)]


SWEEP = ("--tasks", "Pendulum-v1", "--eval-freq", 60, "--eval-episodes", 1, "--learning-starts", 50, "--width", 16)


def steps(folder, algo="flow_g"):
    lines = (folder / "results" / "Pendulum-v1" / algo / "1.csv").read_text().splitlines()
    return [int(line.split(",")[0]) for line in lines[1:]]


def begin(monkeypatch, *args):
    """A sweep that is stopped after its first checkpoint."""
    save = learning.save_model

    def save_and_stop(run, model):
        save(run, model)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learning, "save_model", save_and_stop)
        patch.setattr(learning, "run_all", lambda runs, *_: learning.train(runs[0], queue.Queue()))
        with pytest.raises(KeyboardInterrupt):
            run(patch, learning, *args)


@pytest.mark.slow
def test_a_sweep_goes_on_and_a_run_that_fails_is_named(in_tmp_path, monkeypatch):
    sweep = (*SWEEP, "--seeds", 1, "--out", "results", "--algos", "flow_g")
    begin(monkeypatch, *sweep, "--steps", 120)
    assert steps(in_tmp_path) == [60]
    (in_tmp_path / "results" / "Pendulum-v1" / "flow_g+bad").touch()  # where its folder should be
    with pytest.raises(SystemExit, match=r"^1 of 2 runs failed: Pendulum-v1 flow_g\+bad seed 1$"):
        run(monkeypatch, learning, *sweep, "flow_g+bad", "--steps", 120)
    assert steps(in_tmp_path) == [60, 120]


def make_run(out, **changes):
    run = learning.Run("Pendulum-v1", "flow_g", 1, 60, 60, 1, 50, 16, 256, Path(out), {})
    return dataclasses.replace(run, **changes)


def write_row(run):
    """What a run of 60 steps leaves."""
    run.csv.parent.mkdir(parents=True)
    run.csv.write_text("step\n60\n")
    run.write_settings()


def run_all_without_training(monkeypatch, *runs):
    """The runs that would have been started."""
    started = []
    monkeypatch.setattr(learning.LocalPool, "start", lambda pool, train, run: started.append(run.name))
    monkeypatch.setattr(learning.LocalPool, "outcome", lambda pool, handle: "")
    monkeypatch.setattr(learning.LocalPool, "progress", queue.Queue(), raising=False)
    learning.run_all(list(runs), jobs=1)
    return started


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"overrides": {"bc_coef": 1.0}}, "overrides"),
        ({"width": 32, "batch_size": 8}, "width, batch_size"),
        ({"steps": 120}, "steps"),  # its buffer has another size
    ],
)
def test_other_settings_are_refused_before_anything_is_trained(changes, named, in_tmp_path, monkeypatch):
    begun = make_run("results")
    write_row(begun)
    assert run_all_without_training(monkeypatch, begun) == []
    message = rf"^Pendulum-v1 flow_g seed 1: other settings than in results/.*/1.jsonl \({named}\): give these, or an"
    with pytest.raises(SystemExit, match=message) as error:
        run_all_without_training(monkeypatch, make_run("results", seed=2), dataclasses.replace(begun, **changes))
    assert "\n" not in str(error.value)


def test_half_a_run_without_its_checkpoint_is_not_overwritten(in_tmp_path, monkeypatch):
    run = make_run("results", steps=60, eval_freq=20)
    write_row(run)
    run.csv.write_text("step\n20\n40\n")
    with pytest.raises(SystemExit, match=r"1.csv has 40 of 60 steps, but runs/.* has no checkpoint to go on from"):
        run_all_without_training(monkeypatch, run)
    run.csv.write_text("step\n20\n")  # killed before there was one
    assert run_all_without_training(monkeypatch, run) == [run.name]


def test_a_start_that_failed_binds_nobody(in_tmp_path, monkeypatch):
    bad = make_run("results", overrides={"bc_coef": -1})
    write_row(bad)
    bad.csv.unlink()
    assert run_all_without_training(monkeypatch, make_run("results")) == ["Pendulum-v1 flow_g seed 1"]


def test_what_leaves_a_runs_numbers_as_they_are_is_not_compared(in_tmp_path, monkeypatch):
    data = {"offline_dataset": "ogbench:cube@/here/cube.npz"}
    begun = [make_run("results", overrides=data), make_run("results", algo="crossq")]
    for each in begun:
        write_row(each)
    (in_tmp_path / "results").rename("moved")
    moved = {"offline_dataset": "ogbench:cube@/there/cube.npz"}
    goes_on = [make_run("moved", overrides=moved), make_run("moved", algo="crossq", overrides={"bc_coef": 1.0})]
    assert run_all_without_training(monkeypatch, *goes_on) == []
    other = make_run("moved", overrides={"offline_dataset": "ogbench:cube@/there/other.npz"})
    with pytest.raises(SystemExit, match=r"\(overrides\)"):
        run_all_without_training(monkeypatch, other)


def test_every_folder_of_results_has_its_own_checkpoints_all_of_them_in_runs(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    outs = ["x", "y/x", tmp_path / "x", "../x"]
    inside = ["x", "y/x", *(path.relative_to("/") for path in (tmp_path / "x", tmp_path / "a" / "x"))]
    checkpoints = [make_run(out).checkpoint for out in outs]
    assert checkpoints == [Path("runs") / path / "Pendulum-v1" / "flow_g" / "1" for path in inside]


def test_a_checkpoint_without_its_csv_is_left_alone(in_tmp_path):
    deleted = make_run("results")
    write_row(deleted)
    deleted.checkpoint.mkdir(parents=True)
    (deleted.checkpoint / "model.zip").touch()
    assert deleted.can_go_on
    deleted.csv.unlink()
    assert not deleted.can_go_on


def test_a_kill_between_the_moves_of_a_checkpoint_leaves_the_old_one(in_tmp_path, monkeypatch):
    begun = make_run("results")
    write_row(begun)
    model = learning.make_model(begun)
    learning.save_model(begun, model)
    moves = []

    def rename(path, target):
        if moves:
            raise KeyboardInterrupt
        moves.append((path, target))
        os.rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            learning.save_model(begun, model)
    assert not begun.checkpoint.exists()
    assert begun.can_go_on
    assert learning.load_model(begun).replay_buffer.size() == 0


def test_a_run_that_is_done_keeps_its_model_and_not_its_buffer(in_tmp_path, monkeypatch, capsys):
    sweep = (*SWEEP, "--seeds", 1, "--out", "results", "--algos", "flow_g")
    monkeypatch.setattr(learning, "run_all", lambda runs, *_: learning.train(runs[0], queue.Queue()))
    run(monkeypatch, learning, *sweep, "--steps", 60)
    assert os.listdir(make_run("results").checkpoint) == ["model.zip"]
    assert re.search(r"Pendulum-v1 flow_g seed 1: its checkpoint takes \d+ MB", capsys.readouterr().out)


def test_a_run_that_goes_on_reads_the_data_that_its_command_names(in_tmp_path):
    arrays = pendulum_arrays([20, 30])
    for name in ("here", "there"):
        np.savez(in_tmp_path / f"{name}.npz", **arrays)
    begun = make_run("results", overrides={"offline_dataset": str(in_tmp_path / "here.npz"), "offline_steps": 5})
    write_row(begun)
    learning.save_model(begun, learning.make_model(begun))
    moved = dataclasses.replace(begun, overrides={**begun.overrides, "offline_dataset": str(in_tmp_path / "there.npz")})
    assert learning.load_model(moved).offline_dataset == str(in_tmp_path / "there.npz")


def test_gradient_norms_of_two_budgets_do_not_mix(in_tmp_path, norms_in_this_process):
    budget = gradient_norms.Budget("Pendulum-v1", 20, 20, 10, width=16, batch_size=8)
    runs, out = [("Flow-G", 1, 0)], Path("norms.csv")
    rows = gradient_norms.measure_all(budget, runs, out, jobs=1)
    assert [row["i"] for row in rows] == ["0", "1"]
    assert gradient_norms.measure_all(budget, runs, out, jobs=1) == rows
    longer = dataclasses.replace(budget, steps=40, overrides={"policy_delay": 1})
    message = r"^Pendulum-v1: other settings than in norms.jsonl \(steps, overrides\): give these, or another --out$"
    with pytest.raises(SystemExit, match=message):
        gradient_norms.measure_all(longer, runs, out, jobs=1)
    elsewhere = dataclasses.replace(longer, env="MountainCarContinuous-v0")
    assert {row["env"] for row in gradient_norms.measure_all(elsewhere, runs, out, jobs=1)} == {elsewhere.env}


@pytest.mark.slow
def test_a_sweep_on_ray_and_one_that_it_finds_begun(in_tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    sweep = (*SWEEP, "--seeds", 1, "--out", "results", "--algos", "flow_g", "--ray", "local")
    try:
        begin(monkeypatch, *sweep, "--steps", 120)
        run(monkeypatch, learning, *sweep, "--steps", 120)
    finally:
        ray.shutdown()
    assert steps(in_tmp_path) == [60, 120]


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        (learning, ("--algos", "flow_x"), "'flow_x' is no algorithm: choose from flow_t, "),
        (learning, ("--algos", "crossq+x"), "'crossq+x' is no algorithm: choose from flow_t, "),
        (learning, ("--overrides", "{"), "--overrides: '{' is no JSON object: write it like"),
        (learning, ("--overrides", "[1]"), "--overrides: '[1]' is no JSON object: write it like"),
        (learning, ("--jobs", "0"), "--jobs: '0' is no whole number from 1 on"),
        (learning, ("--steps", "1e3"), "--steps 1000: it must be a multiple of --eval-freq 5000"),
        (learning, ("--steps", "1.5"), "--steps: '1.5' is no whole number from 1 on"),
        (gradient_norms, ("--jobs", "two"), "--jobs: 'two' is no whole number from 1 on"),
        (gradient_norms, ("--out", "a.csv", "--env", "Hoper-v4"), "--env Hoper-v4: there is no such task here"),
        (gradient_norms, ("--out", "a.csv", "--steps", "2e3"), "--steps 2000: more than 2000 random ones"),
        (train_step, ("--sweep", "batch"), "--sweep batch: give one of batch, width, flow_steps, horizon, and whole"),
        (end_to_end, ("--sweep", "n_envs", "0"), "--sweep n_envs 0: give one of n_envs, and whole numbers from 1"),
        (train_step, ("--reference", "nowhere"), "--reference nowhere: no checkout of the authors' code"),
        (learning, ("--tasks", "Hoper-v4"), "--tasks Hoper-v4: there is no such task here; near it are Hopper-v4, "),
        (reproduce, ("figure_1", "--scale", "smoke"), "invalid choice: 'figure_1'"),
        (reproduce, ("k_ablation", "--scale", "smoke", "--tasks", "Hoper-v4"), "near it are Hopper-v4, "),
        (reproduce, ("offline_to_online", "--scale", "cpu", "--tasks", "lift"), "near it are cube-"),
        (reproduce, ("gradient_norms", "--scale", "cpu", "--ray", "auto"), "--ray: the gradient norms are measured on"),
        (page, ("nowhere",), "folders='nowhere' is not allowed: there is no such folder"),
    ],
)
def test_bad_arguments_are_one_line(script, args, message, in_tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, script, *args)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any(in_tmp_path.iterdir())


def test_missing_extras_are_named(in_tmp_path, monkeypatch):
    for package in ("ray", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=r"needs ray: pip install -c constraints\.txt '\.\[ray\]'"):
        run(monkeypatch, learning, *SWEEP, "--steps", 120, "--ray", "local")
    monkeypatch.delitem(sys.modules, "figures")
    with pytest.raises(SystemExit, match=r"figures need matplotlib: pip install -c constraints\.txt '\.\[plots\]'"):
        importlib.import_module("figures")
