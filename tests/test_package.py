"""What is shipped is complete, and what is written points somewhere."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sb3_flow
from sb3_flow.zoo.registration import ALGORITHMS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_file_named_in_the_docs_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:benchmarks|tests|examples|sb3_flow)/[\w/.]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
SHIPPED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")


def build(hook: str, source: Path, out: Path) -> None:
    built = subprocess.run([sys.executable, "-c", BUILD, hook, str(out)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the sdist, and that from a copy: what an earlier build left in the checkout would get into it."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("sb3_flow", "hyperparams"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SHIPPED, "custom_envs.py"):
        shutil.copy(ROOT / name, folder / "copy")
    build("build_sdist", folder / "copy", folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    build("build_wheel", folder / archive.name.removesuffix(".tar.gz"), folder)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_everything_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sb3_flow").rglob("*.py")}
    configs = {f"sb3_flow/hyperparams/{algo}.yml" for algo in ALGORITHMS}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == code | configs | {"custom_envs.py", "sb3_flow/py.typed"}
    assert [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]


def test_the_version_is_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert f"\nVersion: {sb3_flow.__version__}\n" in wheel.read(name).decode()
    assert f"\nversion: {sb3_flow.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == sb3_flow.__version__


def test_links_of_the_description_lead_to_the_repository_that_builds_it(tmp_path: Path) -> None:
    home = "https://github.com/someone/sb3_flow"
    environment = {**os.environ, "GITHUB_REPOSITORY": "someone/sb3_flow", "GITHUB_SERVER_URL": "https://github.com"}
    run = [sys.executable, str(ROOT / "setup.py"), "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    assert subprocess.run(run, cwd=ROOT, env=environment, capture_output=True).returncode == 0
    text = (tmp_path / "sb3_flow.egg-info" / "PKG-INFO").read_text()
    assert re.findall(r"\]\((?!http|#)", text) == []
    assert f"]({home}/raw/main/docs/images/learning.png)" in text
    assert f"]({home}/blob/main/docs/algorithm.md)" in text


def test_the_velocity_net_of_the_contributors_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    exec(compile(block, "CONTRIBUTING.md", "exec"), {})
    assert (tmp_path / "linear.zip").is_file()


@pytest.mark.slow
def test_importing_the_package_warns_of_no_old_path_and_imports_neither_the_zoo_nor_the_suites() -> None:
    imports = "import sys, sb3_flow, sb3_flow.export; print(sorted({m.split('.')[0] for m in sys.modules}))"
    code = f"import warnings; warnings.filterwarnings('error', message='.*has moved'); {imports}"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("rl_zoo3", "optuna", "ogbench", "robosuite", "h5py", "minari"):
        assert f"'{heavy}'" not in modules
