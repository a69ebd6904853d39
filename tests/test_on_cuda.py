"""benchmarks/on_cuda.py on a CPU with tiny nets: the command works wherever it is taken."""

import argparse
import json
import sys
from pathlib import Path

import on_cuda
import pytest
from children import Child, measure_in_turn


@pytest.mark.slow
def test_every_part_answers_and_one_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> list[on_cuda.Row]:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(on_cuda.PARTS, "tests", on_cuda.Part(fail, 1))
    arguments = ["--device", "cpu", "--smoke", "--rounds", "1", "--env", "Pendulum-v1", "--out", str(tmp_path)]
    result = on_cuda.main([*arguments, "--parts", *on_cuda.PARTS])
    assert result == json.loads((tmp_path / "cpu.json").read_text())
    parts = result["parts"]
    assert "out of luck" in parts["tests"]["error"]
    assert [parts[name]["error"] for name in parts if name != "tests"] == [""] * (len(parts) - 1)
    (row,) = parts["speed"]["rows"]
    assert row["contender"] == "flow_t"
    assert min(row["updates_per_s"], row["env_steps_per_s"]) > 0
    table = (tmp_path / "cpu.md").read_text()
    assert all(f"## {name}" in table for name in on_cuda.PARTS)
    assert "| flow_t | 8 | 16 | 4 |" in table


UNENDING = """#!{python}
import time
print("[gw0] [ 50%] PASSED tests/test_cuda.py::test_a", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("FAILED tests/test_cuda.py::test_b - a reason")
"""


@pytest.mark.slow
def test_tests_that_are_cut_off_say_what_failed_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(UNENDING.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setitem(on_cuda.PARTS, "tests", on_cuda.Part(on_cuda.run_tests, on_cuda.TO_STOP + 5))
    rows = on_cuda.run_tests(argparse.Namespace(out=tmp_path))
    assert [row["tests"] for row in rows[:2]] == [1, 0]
    assert rows[2]["are"] == "FAILED tests/test_cuda.py::test_b - a reason"


SCRIPT = """
import sys, time
time.sleep(float(sys.argv[1]))
print("{ready}", flush=True)
sys.stdin.readline()
print(sys.argv[2])
"""


@pytest.mark.slow
def test_children_measure_in_turn_and_the_late_ones_are_left_out() -> None:
    script = SCRIPT.format(ready=Child.READY)
    said = [Child.RESULT + '{"ms": 1}', "Segmentation fault"]
    children = [Child([sys.executable, "-c", script, wait, text]) for wait, text in (("0", said[0]), ("0", said[1]))]
    children.append(Child([sys.executable, "-c", script, "60", said[0]]))
    rows = measure_in_turn(children, compile_seconds=3, measure_seconds=3)
    assert rows == [{"ms": 1}, None, None]
    assert [child.error for child in children[1:]] == ["Segmentation fault", "not ready in time"]
    assert all(child.process.wait(5) is not None for child in children)
