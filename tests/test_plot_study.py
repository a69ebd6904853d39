"""Pictures of studies, and one clear line where there can be none."""

import sys

import optuna
import pytest

from sb3_flow.zoo import plot_study as script
from sb3_flow.zoo.registration import ALGORITHMS
from sb3_flow.zoo.storage import open_storage

OFFLINE = {"offline_dataset": "ogbench:x", "ent_coef": "0.0", "policy_kwargs": "{'noise_std': 0.1}"}


def make_study(storage, n_trials, fixed, algo="sac_flow"):
    """A study of our search space in which beta and K decide."""
    study = optuna.create_study(
        storage=open_storage(str(storage)),
        study_name="study",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    space = ALGORITHMS[algo].search.space(fixed, 3)
    for _ in range(n_trials):
        trial = study.ask(space)
        steps, _ = ALGORITHMS[algo].search.steps
        study.tell(trial, trial.params[steps] - trial.params.get("bc_coef", 0) / 1e5)


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["plot_study", "--study-name", "study", *map(str, args)])
    script.main()


@pytest.mark.parametrize(
    ("algo", "fixed", "args", "contour"),
    [
        ("sac_flow", OFFLINE, (), {"bc_coef", "flow_steps"}),
        ("fql", {}, (), {"bc_coef", "flow_steps"}),
        ("qsm", OFFLINE, (), {"bc_coef", "diffusion_steps"}),
        ("sac_flow", {}, ("--contour", "d_model", "learning_rate"), {"d_model"}),
        ("sac_flow", {}, (), ()),
    ],
    ids=["beta and K", "alpha and K", "alpha and diffusion steps", "chosen", "most important"],
)
def test_one_command_makes_every_picture_in_both_formats(algo, fixed, args, contour, tmp_path, monkeypatch, capsys):
    pytest.importorskip("plotly")
    pytest.importorskip("matplotlib").use("agg")
    make_study(tmp_path / "study.log", 8, fixed, algo)
    out = tmp_path / "plots"
    run(monkeypatch, "--storage", tmp_path / "study.log", "--out", out, *args)
    printed = capsys.readouterr().out.split()
    best = script.load_study(str(tmp_path / "study.log"), "study").best_trial
    assert printed[-4:] == ["best:", "--trial-id", f"{best.number},", f"{best.value:.6g}"]
    for name in ("history", "importance", "contour"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        html = (out / f"{name}.html").read_text()
        assert 'src="plotly.min.js"' in html
        assert {str(out / f"{name}.png"), str(out / f"{name}.html")} <= set(printed)
    html = (out / "contour.html").read_text()
    assert all(name in html for name in contour)
    assert "policy_kwargs" not in (out / "importance.html").read_text()


def test_a_study_of_one_parameter_has_no_contour(tmp_path):
    pytest.importorskip("plotly")
    pytest.importorskip("matplotlib").use("agg")
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: -trial.suggest_float("bc_coef", 1, 1e5), n_trials=4)
    drawn = {path.name for path in script.plot_study(study, tmp_path)}
    assert drawn == {"history.png", "history.html", "importance.png", "importance.html"}


@pytest.mark.parametrize(
    ("args", "n_trials", "message"),
    [
        ((), 1, "study_name='study' is not allowed: two finished trials or more; it has 1"),
        (("--contour", "bc_coef", "flow_steps"), 2, "contour='bc_coef' is not allowed: choose one of"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(args, n_trials, message, tmp_path, monkeypatch):
    pytest.importorskip("plotly")
    make_study(tmp_path / "study.log", n_trials, {})
    with pytest.raises(SystemExit, match=message) as error:
        run(monkeypatch, "--storage", tmp_path / "study.log", *args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", ["matplotlib", "plotly"])
def test_a_missing_extra_is_named(package, tmp_path, monkeypatch):
    make_study(tmp_path / "study.log", 2, {})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"need {package}: pip install -c constraints\.txt '\.\[plots\]'"):
        run(monkeypatch, "--storage", tmp_path / "study.log")
