"""`benchmarks/products.py` counts what an update multiplies."""

import csv
import json
import sys
from pathlib import Path

import products
import pytest
import torch as th


class EverySecond:
    """One product of (3, 4) and (4, 5) an update, two in every second one."""

    device = th.device("cpu")

    def train(self, gradient_steps: int, batch_size: int) -> None:
        for i in range(gradient_steps):
            for _ in range(1 + i % 2):
                th.ones(batch_size, 4) @ th.ones(4, 5)


def test_products_are_those_of_an_update_and_what_is_delayed_counts_by_its_share() -> None:
    assert products.operations(EverySecond(), 3) == pytest.approx(1.5 * 2 * 3 * 4 * 5 / 1e6)


@pytest.mark.slow
def test_the_command_leaves_a_row_for_each_with_its_own_steps_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"
    sizes = ("--batch", "4", "--width", "8", "--flow-steps", "2", "--contenders", "sac", "flow_g", "qc_fql", "qsm")
    monkeypatch.setattr(sys, "argv", ["products", *sizes, "--env", "Pendulum-v1", "--out", str(out)])
    products.main()
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert [(row["contender"], row["flow_steps"], row["horizon"]) for row in rows] == [
        ("crossq", "2", "1"),
        ("sac", "2", "1"),
        ("flow_g", "2", "1"),
        ("qc_fql", "10", "5"),
        ("qsm", "5", "1"),
    ]
    assert rows[0]["to_crossq"] == "1.0"
    assert all(float(row["million_operations"]) > 0 for row in rows)
    record = json.loads(out.with_suffix(".jsonl").read_text())
    assert record.keys() == {"command", "commit", "machine"}
    assert "--contenders sac flow_g" in record["command"]
