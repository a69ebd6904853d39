"""What is written works: code runs, commands are understood, tables are those of the CSVs, the site builds.

Code runs as it stands but for its numbers from 1,000 on, which are made small, and episodes, which end after 20 steps.
Commands are read by their scripts' own parsers. Nothing is uploaded and nothing is downloaded: what would need an
account or a server (`sb3_flow.zoo.push_to_hub`, `rl_zoo3.load_from_hub`, `--track`, a postgresql storage) is read only.
"""

import argparse
import ast
import inspect
import json
import math
import re
import runpy
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import onnxruntime
import pytest
from dataset_files import raw_arrays, trajectories, write_robomimic
from helpers import blocks

from sb3_flow import SACFlow
from sb3_flow.zoo import register
from sb3_flow.zoo.registration import ALGORITHMS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
OWN_NET = "own_velocity_net.md"
OWN_ALGORITHM = "own_algorithm.md"
OF_EXTRAS = ("ogbench", "robosuite")  # what scripts may need that tests can do without
# Of the zoo, and not of an algorithm
ZOO_ARGUMENTS = {"policy", "n_timesteps", "normalize", "seeds_per_trial", "frame_stack", "env_wrapper"}


class Shorter(ast.NodeTransformer):
    """Numbers from 1,000 on become small, and keep their order."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, (int, float)) and node.value >= 1_000:
            return ast.copy_location(ast.Constant(max(1, round(2 * math.log10(node.value)) - 5)), node)
        return node


def execute(code: str, namespace: dict[str, Any], name: str) -> None:
    exec(compile(Shorter().visit(ast.parse(code)), name, "exec"), namespace)


@pytest.fixture
def small_world(tmp_path: Path, short_episodes: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with tiny data where pages look for them, and short episodes."""
    register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    suite = tmp_path / ".ogbench" / "data"
    suite.mkdir(parents=True)
    cubes = {suite / "cube-double-play-v0.npz": (37, 28), tmp_path / "cube-single.npz": (28, 21)}
    for path, (observations, qpos) in cubes.items():
        arrays = raw_arrays(trajectories([30]))
        for key, width in {"observations": observations, "actions": 5, "qpos": qpos}.items():
            arrays[key] = np.random.default_rng(0).uniform(-0.9, 0.9, (31, width)).astype(np.float32)
        np.savez(path, **arrays)
    write_robomimic(tmp_path / "lift.hdf5", [5, 4], masks={"worse": [1]})
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.name not in (OWN_NET, OWN_ALGORITHM)],
    ids=lambda page: page.stem,
)
def test_code_runs(page: Path, small_world: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for i, code in enumerate(blocks(page, "python")):
        execute(code, namespace, f"{page.name}, block {i}")


@pytest.mark.slow
def test_the_notebook_runs(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0].startswith("%pip install")
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for i, cell in enumerate(cells[1:], 1):
        execute(cell, namespace, f"cell {i}")


@pytest.mark.slow
def test_a_velocity_net_of_ones_own_is_trained_saved_exported_and_known_to_the_zoo(
    small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, use, arguments, name_for_the_zoo = blocks(DOCS / OWN_NET, "python")
    (small_world / "residual.py").write_text(net + arguments + name_for_the_zoo)
    monkeypatch.delitem(sys.modules, "residual", raising=False)
    namespace: dict[str, Any] = {"__name__": "page"}
    execute(use, namespace, OWN_NET)
    loaded, obs = namespace["model"], np.ones((3, 3), np.float32)
    acts = loaded.predict(obs, deterministic=True)[0]
    (exported,) = onnxruntime.InferenceSession("residual_pendulum.onnx").run(["action"], {"observation": obs})
    np.testing.assert_allclose(exported, acts, atol=1e-5)

    model = SACFlow(namespace["ResidualPolicy"], "Pendulum-v1", learning_starts=4, batch_size=4, seed=0)
    before = [parameter.clone() for parameter in model.actor.velocity.parameters()]
    model.learn(10)
    after = model.actor.velocity.parameters()
    assert all((old != new).any() for old, new in zip(before, after, strict=True))
    model.save("trained")
    loaded = SACFlow.load("trained")
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))

    wide = sys.modules["residual"].WidePolicy
    SACFlow(wide, "Pendulum-v1", policy_kwargs={"width": 8}).save("wide")
    assert SACFlow.load("wide").actor.velocity.first.out_features == 8

    train, _ = commands(DOCS / OWN_NET)
    monkeypatch.setattr(sys, "argv", ["train", *train.arguments[2:], "n_timesteps:10", "learning_starts:2"])
    runpy.run_module("rl_zoo3.train", run_name="__main__")
    saved = small_world / "logs" / "sac_flow" / "Pendulum-v1_1" / "Pendulum-v1.zip"
    assert isinstance(SACFlow.load(saved).policy, namespace["ResidualPolicy"])


@pytest.mark.slow
def test_an_algorithm_of_ones_own_is_trained_resumed_and_exported(
    small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ogbench")
    algorithm, use, steered, *_ = blocks(DOCS / OWN_ALGORITHM, "python")
    (small_world / "weighted.py").write_text(algorithm)
    monkeypatch.delitem(sys.modules, "weighted", raising=False)
    namespace: dict[str, Any] = {"__name__": "page"}
    execute(use, namespace, OWN_ALGORITHM)
    assert namespace["model"].num_timesteps == 3  # the shortened 12,000
    assert Path("weighted.onnx").exists()

    execute(algorithm + steered, namespace, OWN_ALGORITHM)
    model = namespace["WeightedFlow"](namespace["SteeredPolicy"], "Pendulum-v1", policy_kwargs={"net_arch": [8, 8]})
    assert not set(map(id, model.policy.behavior.parameters())) & set(map(id, model.actor.parameters()))
    assert any(name.startswith("behavior.") for name in model.policy.state_dict())


@pytest.mark.slow
def test_an_algorithm_of_ones_own_is_known_to_the_zoo(small_world: Path) -> None:
    algorithm, _, _, zoo, _ = blocks(DOCS / OWN_ALGORITHM, "python")
    (config,) = blocks(DOCS / OWN_ALGORITHM, "yaml")
    for name, text in {"weighted.py": algorithm, "custom_envs.py": zoo, "weighted.yml": config}.items():
        (small_world / name).write_text(text)
    commands_of = commands(DOCS / OWN_ALGORITHM)
    for arguments, tiny in zip(
        commands_of, (["learning_starts:5", "-n", "20"], ["--no-render", "-n", "5"]), strict=True
    ):
        # In a process of its own: the folder's custom_envs is not ours
        ran = subprocess.run([sys.executable, *arguments.arguments, *tiny], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    assert list(Path("logs").glob("weighted/Pendulum-v1_1/Pendulum-v1.zip"))


# --- Commands ---


class Command(NamedTuple):
    """What bash would run."""

    program: str
    arguments: list[str]


# Nothing is found but what is defined here: a page's commands are read, not run
SHELL = """
PATH=
OUT=out  # docs/cuda.md has it of its reader's machine
say() { printf '%s\\0' "$@"; printf '\\1'; }
for program in python pip make; do eval "$program() { say $program \\"\\$@\\"; }"; done
"""


def commands(page: Path) -> list[Command]:
    """The commands of a page, their variables and quotes resolved by bash, with those that stand in the text."""
    inline = re.findall(
        r"`(python (?:benchmarks/|examples/|-m (?:rl_zoo3|sb3_flow))[^`]+)`",
        re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL),
    )
    script = "\n".join([SHELL, *blocks(page, "bash"), *(" ".join(text.split()) for text in inline if "<" not in text)])
    script = re.sub(r"^\.venv/bin/(?=python )", "", script, flags=re.MULTILINE)
    script = re.sub(r"^\.(?:ci|venv)/.*", "", script, flags=re.MULTILINE)  # a path to a program needs no PATH
    ran = subprocess.run(["bash", "-eu", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return [Command(*_split(line)) for line in ran.stdout.split("\1") if line]


def _split(line: str) -> tuple[str, list[str]]:
    program, *arguments = line.split("\0")[:-1]
    return program, arguments


class Parsed(Exception):  # noqa: N818 (no error)
    """The command line was understood."""

    def __init__(self, namespace: argparse.Namespace):
        self.namespace = namespace


def understood(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script's own parser makes of its arguments.

    :param arguments: of `python`
    """
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        raise Parsed(parse(self, *args, **kwargs))

    is_module = arguments[0] == "-m"
    name, *rest = arguments[1:] if is_module else arguments
    start = runpy.run_module if is_module else runpy.run_path
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *rest])
        with pytest.raises(Parsed) as parsed:
            start(name if is_module else str(ROOT / name), run_name="__main__")
    return parsed.value.namespace


# Those of OWN_ALGORITHM are run
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != OWN_ALGORITHM and commands(page)], ids=lambda page: page.stem
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
    skipped = []
    for program, arguments in commands(page):
        if program == "make":
            assert set(arguments) <= set(targets), arguments
        elif program == "pip":
            wanted = re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(arguments))))
            assert set(wanted) <= set(extras), arguments
        elif arguments[0] == "-c":
            compile(arguments[1], page.name, "exec")
        elif arguments[:2] not in (["-m", "timeit"], ["-m", "pip"], ["-m", "pytest"]):
            try:
                read = understood(arguments, monkeypatch)
            except ModuleNotFoundError as missing:
                if missing.name not in OF_EXTRAS:
                    raise
                skipped.append(f"{arguments[0]} needs {missing.name}")
                continue
            given = getattr(read, "hyperparams", None) or {}
            if given:
                takes = inspect.signature(ALGORITHMS[read.algo].algorithm).parameters
                assert set(given) <= set(takes) | ZOO_ARGUMENTS, arguments
    if skipped:
        pytest.skip("; ".join(skipped))


# --- Tables and the site ---


def test_tables_are_those_of_the_committed_results() -> None:
    tables = pytest.importorskip("tables")
    for page in tables.PAGES:
        assert tables.filled(page.read_text()) == page.read_text(), f"{page.name}: python benchmarks/tables.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning, a link to nowhere among them, is an error."""
    build = pytest.importorskip("sphinx.cmd.build")
    out = tmp_path_factory.mktemp("site")
    folders = ["-d", str(out / "doctrees"), str(DOCS), str(out / "html")]
    assert build.build_main(["-q", "-E", "-W", "--keep-going", *folders]) == 0
    return out / "html"


@pytest.mark.slow
def test_the_site_needs_nothing_from_elsewhere_and_its_links_lead_somewhere(site: Path) -> None:
    ids = {path: set(re.findall(r'\bid="([^"]*)"', path.read_text())) for path in site.rglob("*.html")}
    assert {path.with_suffix(".html").name for path in DOCS.glob("*.md")} <= {path.name for path in ids}
    for path in ids:
        text = path.read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', text), path.name
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            file, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"\w+:", file):
                continue
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert target.exists(), f"{path.name}: {link}"
            assert not anchor or target not in ids or anchor in ids[target], f"{path.name}: {link}"
