"""The soak of benchmarks/soak.py, for seconds instead of an hour."""

import csv
import sys
from pathlib import Path

import pytest
import soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_soak_draws_a_row_a_minute_and_leaks_no_file_or_thread(tmp_path: Path) -> None:
    soak.soak(4, tmp_path / "soak.csv", seconds=0.2)
    with open(tmp_path / "soak.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["minute"]) for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["open_files"] == rows[-1]["open_files"]
    assert rows[1]["threads"] == rows[-1]["threads"]
    soak.draw(tmp_path / "soak.csv", tmp_path / "new" / "soak.png")
    assert (tmp_path / "new" / "soak.png").stat().st_size > 1000
