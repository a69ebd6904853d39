"""What is shipped is complete, and what is written points somewhere."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_file_named_in_the_docs_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:benchmarks|tests|examples|sb3_flow)/[\w/.]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_wheel_ships_the_zoo_s_hook_and_hyperparameters(tmp_path: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    built = subprocess.run(pip, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "custom_envs.py",
        "sb3_flow/hyperparams/sac_flow.yml",
        "sb3_flow/hyperparams/fql.yml",
        "sb3_flow/hyperparams/dime.yml",
        "sb3_flow/py.typed",
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "examples/"))]


def test_importing_the_package_imports_neither_the_zoo_nor_the_suites() -> None:
    code = "import sys, sb3_flow; print(sorted({m.split('.')[0] for m in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("rl_zoo3", "optuna", "ogbench", "robosuite", "h5py", "minari"):
        assert f"'{heavy}'" not in modules
