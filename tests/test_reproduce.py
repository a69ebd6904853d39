"""Every reproduction command at its smallest scale, sweeps that go on, and arguments that are refused."""

import importlib
import sys

import numpy as np
import pytest
import torch as th
import yaml

pytest.importorskip("rliable")
pytest.importorskip("ogbench")

import contenders
import gradient_norms
import learning
import page
import reproduce
import scores

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
    "offline_to_online": ["summary.csv", "offline_to_online.png", "cube-single.npz"],
    "gradient_norms": ["gradient_norms.csv", "gradient_norms_Hopper-v4.png"],
    "k_ablation": ["summary.csv", "k_ablation.png", "k_ablation_profiles.png", "k_ablation_final.png"],
    "velocity_ablation": ["summary.csv", "velocity_ablation.png", "velocity_ablation_profiles.png"],
}


@pytest.mark.parametrize("figure", reproduce.FIGURES)
def test_smoke(figure, in_tmp_path, monkeypatch):
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


def test_the_scale_paper_is_the_papers():
    scale = reproduce.SCALES["paper"]
    settings = yaml.safe_load(CONFIG.read_text())
    assert set(scale.tasks) == {task for task in settings if task.endswith("-v4")}
    for task in scale.tasks:
        assert settings[task]["n_timesteps"] == scale.steps
        assert settings[task]["batch_size"] == scale.batch_size
        assert settings[task]["learning_starts"] == scale.learning_starts
        assert settings[task]["buffer_size"] == scale.steps  # what the runner makes it
    assert len(scale.offline_tasks) == 4 * 5 + 3
    for task in scale.offline_tasks:
        overrides = reproduce.paper_offline_run(task, "flow_t", 1, None, None).overrides
        assert {**overrides, "policy_kwargs": settings[task]["policy_kwargs"]}.items() <= settings[task].items()
        assert overrides["policy_kwargs"] == {"critic": "target", "noise_std": 0.1, "net_arch": {"qf": [512] * 4}}


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


def test_a_sweep_goes_on_and_a_run_that_fails_is_named(in_tmp_path, monkeypatch):
    sweep = (*SWEEP, "--seeds", 1, "--out", "results", "--algos", "flow_g")
    run(monkeypatch, learning, *sweep, "--steps", 60)
    run(monkeypatch, learning, *sweep, "--steps", 120)
    assert steps(in_tmp_path) == [60, 120]
    with pytest.raises(SystemExit, match=r"^1 of 2 runs failed: Pendulum-v1 flow_g\+bad seed 1$"):
        run(monkeypatch, learning, *sweep, "flow_g+bad", "--steps", 120, "--overrides", '{"bc_coef": -1}')


def test_a_sweep_on_ray_and_one_that_it_finds_begun(in_tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    sweep = (*SWEEP, "--seeds", 1, "--out", "results", "--algos", "flow_g", "--ray", "local")
    try:
        run(monkeypatch, learning, *sweep, "--steps", 60)
        ray.shutdown()
        run(monkeypatch, learning, *sweep, "--steps", 120)
    finally:
        ray.shutdown()
    assert steps(in_tmp_path) == [60, 120]


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        (learning, ("--algos", "flow_x"), "'flow_x' is no algorithm: choose from flow_t, "),
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
    for package in ("ray", "rliable"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=r"needs ray: pip install 'sb3_flow\[ray\]'"):
        run(monkeypatch, learning, *SWEEP, "--ray", "local")
    monkeypatch.delitem(sys.modules, "scores")
    with pytest.raises(SystemExit, match=r"need rliable: pip install 'sb3_flow\[plots\]'"):
        importlib.import_module("scores")
