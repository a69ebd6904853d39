"""What the speed benchmarks refuse, and what is fair to their contenders."""

import csv
import sys
from pathlib import Path
from types import ModuleType

import against
import contenders
import end_to_end
import pytest
import timing
import train_step

TINY = ("--batch", "4", "--width", "8", "--env", "Pendulum-v1", "--rounds", "1", "--warmup", "0")


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *TINY, *options])
    module.main()


def test_a_sweep_over_what_a_contender_has_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--sweep flow_steps: fql has 10, whatever is swept"):
        run(train_step, monkeypatch, "--sweep", "flow_steps", "1", "2", "--contenders", "fql")


def test_a_rollout_that_the_environments_do_not_share_evenly_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(end_to_end, monkeypatch, "--steps", "20", "--sweep", "n_envs", "3", "--contenders", "ppo")
    assert "--steps 20 is no multiple of 3 environments" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "updates"), [("crossq", 1), ("flow_t", 1), ("dime", 2), ("dime+compiled", 2)])
def test_each_contender_makes_its_own_number_of_updates(name: str, updates: int) -> None:
    assert contenders.updates_a_step(name) == updates


@pytest.mark.slow
@pytest.mark.skipif(not (against.ROOT / ".git").exists(), reason="no git checkout")
def test_another_commit_is_timed_with_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "against.csv"
    monkeypatch.chdir(tmp_path)
    run(against, monkeypatch, "HEAD", "--contenders", "flow_mlp", "--cycles", "1", "--out", str(out))
    with open(out) as f:
        rows = list(csv.DictReader(f))
    assert [row["contender"] for row in rows] == ["HEAD", "here"]
    assert all(float(row["median"]) > 0 for row in rows)
    assert float(rows[0]["ratio"]) == 1


def test_ratios_are_those_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower and slower, and a function that always takes a half more than the other."""
    seconds = 0.0
    speed = iter(range(1, 100))

    def sleep(ticks: float) -> None:
        nonlocal seconds
        seconds += ticks

    pace = 0.0

    def base() -> None:
        nonlocal pace
        pace = float(next(speed))
        sleep(2 * pace)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: seconds)
    monkeypatch.setattr(timing.random, "sample", lambda names, _: names)
    rows = timing.compared({"base": base, "other": lambda: sleep(3 * pace)}, "base", rounds=9, warmup=1, scale=1)
    assert (rows["other"]["ratio"], rows["other"]["low"], rows["other"]["high"]) == (1.5, 1.5, 1.5)
    assert rows["base"]["ratio"] == 1
    assert rows["other"]["q1"] < rows["other"]["q3"]
