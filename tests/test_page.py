"""The page of results in a real browser: what is drawn, what the filters in its address leave, and what a run tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest

pytest.importorskip("rliable")
import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium")
RUNS = [("Hopper-v4", "flow_t", 1), ("Hopper-v4", "flow_t", 2), ("Hopper-v4", "sac", 1), ("Ant-v4", "flow_t+K7", 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four runs, one of which has no record."""
    folder = tmp_path_factory.mktemp("results")
    for task, algo, seed in RUNS:
        path = folder / "set" / task / algo / f"{seed}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("step,deterministic_return,success_rate\n10,1.5,\n20,-3,\n")
        if algo != "sac":
            record = {"task": task, "algo": algo, "seed": seed, "steps": 20, "overrides": {"x": "</script>"}}
            path.with_suffix(".jsonl").write_text(json.dumps({**record, "commit": f"c0ffee{seed}", "machine": "M"}))
    page.write_page([folder], folder / "results.html")
    return folder


def shown(results: Path, **choice: str) -> str:
    """The page's elements once its script has run, with a choice in its address."""
    assert BROWSER is not None
    address = f"{(results / 'results.html').as_uri()}#{urlencode(choice)}"
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=1000", "--dump-dom"]
    html = subprocess.run([*browser, address], capture_output=True, text=True, timeout=120, check=True).stdout
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def test_the_page_loads_nothing(results: Path) -> None:
    html = (results / "results.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert html.count("</script>") == 2  # what a record says cannot end the data


@in_a_browser
def test_every_run_is_a_line_and_several_seeds_have_a_mean(results: Path) -> None:
    html = shown(results)
    assert re.findall(r"<figcaption>(.*?)</figcaption>", html) == ["Ant-v4", "Hopper-v4"]
    # Two seeds of Flow-T are thin, their mean and the single runs are not
    assert html.count('class="run"') == 2
    assert html.count('class="mean"') == 3
    for name in ("SAC Flow-T, K7", "SAC Flow-T<", "SAC<"):
        assert name in html


@in_a_browser
def test_tasks_and_algorithms_are_chosen_and_a_run_tells_its_commit_and_settings(results: Path) -> None:
    run = results / "set" / "Hopper-v4" / "flow_t" / "2.csv"
    html = shown(results, task="Hopper-v4", without="sac", run=str(run))
    assert re.findall(r"<figcaption>(.*?)</figcaption>", html) == ["Hopper-v4"]
    assert html.count('class="mean"') == 1
    details = html.partition('id="details"')[2]
    assert "SAC Flow-T, seed 2" in details
    assert "-3 at 20 steps" in details
    assert "<dd>c0ffee2</dd>" in details
    assert "&lt;/script&gt;" in details
