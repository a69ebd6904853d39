"""Every example runs as it stands, only shorter."""

import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("short_episodes")
EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {
    "train.py": ["--steps", "60"],
    "custom_env.py": ["--steps", "60"],
    "vectorised.py": ["--steps", "60", "--n-envs", "2"],
    "her.py": ["--steps", "60"],
    "callbacks.py": ["--steps", "60"],
    "onnx_export.py": ["--steps", "60"],
    "offline_to_online.py": ["--offline-steps", "10", "--online-steps", "20", "--episodes", "1"],
    "demo.py": ["--steps", "60", "--env", "Hopper-v5", "--video-length", "5"],
    "load_and_render.py": ["--video-length", "5"],
}


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS[name]])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in ("demo.py", "load_and_render.py")])
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example(name, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_trained_model_is_loaded_and_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example("train.py", tmp_path, monkeypatch)
    run_example("load_and_render.py", tmp_path, monkeypatch)
    assert list((tmp_path / "videos").glob("*.mp4"))


@pytest.mark.slow
def test_the_demo_leaves_a_model_a_video_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example("demo.py", tmp_path, monkeypatch)
    assert (tmp_path / "demo" / "model.zip").exists()
    assert (tmp_path / "demo" / "learning_curve.png").exists()
    assert list((tmp_path / "demo").glob("policy*.mp4"))


@pytest.mark.slow
def test_the_demo_ends_at_the_first_evaluation_after_its_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ARGUMENTS, "demo.py", [*ARGUMENTS["demo.py"], "--minutes", "0"])
    run_example("demo.py", tmp_path, monkeypatch)
    assert "(all 60 with --minutes 1)" in capsys.readouterr().out
    assert (tmp_path / "demo" / "learning_curve.png").exists()
