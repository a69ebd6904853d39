"""What `describe` says of data is what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import compact_arrays, regular_arrays, trajectories

from sb3_flow.datasets import describe, from_arrays, load_dataset, save_dataset


@pytest.mark.parametrize("layout", [regular_arrays, compact_arrays])
def test_episodes_ends_and_ranges_are_said(layout: Any) -> None:
    arrays = layout(trajectories([4, 6]))
    data = from_arrays(arrays)
    rows = data.rows(np.arange(10))
    for name in ("rewards", "masks"):
        arrays[name] = np.zeros(len(data.ends), np.float32)
    arrays["rewards"][rows] = np.arange(10)
    arrays["masks"][rows] = 1
    arrays["masks"][rows[[2, 9]]] = 0
    first, episodes, observations, actions, rewards, play = describe(from_arrays(arrays)).splitlines()
    assert first.startswith("OfflineDataset(10 steps, 2 episodes")
    assert episodes == "episodes: 4 to 6 steps; 1 of 2 end in a terminal state"
    low, high = data.observations.min(), data.observations.max()  # type: ignore[union-attr]
    assert observations == f"observations: float32, {low:g} to {high:g}"
    low, high = data.actions[rows].min(), data.actions[rows].max()
    assert actions == f"actions: {low:g} to {high:g}"
    assert rewards == "rewards: 0 to 9; an episode's sum 6 to 39, 22.5 in the mean"
    assert play == "terminal steps after which the episode goes on, as in play data: 1"


def test_of_a_dict_each_part_and_of_files_the_first_is_described(tmp_path: Path) -> None:
    arrays = regular_arrays(trajectories([5]))
    for name in ("observations", "next_observations"):
        camera = np.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4).astype(np.uint8)
        arrays[name] = {"arm": arrays[name], "camera": camera}  # type: ignore[assignment]
    lines = describe(from_arrays(arrays)).splitlines()
    assert [line.partition(":")[0] for line in lines[2:4]] == ["observations/arm", "observations/camera"]
    assert lines[3] == "observations/camera: uint8, 0 to 239"
    for name in ("a", "b"):
        save_dataset(arrays, tmp_path / name)
    with pytest.warns(UserWarning, match="take turns"):
        several = load_dataset(tmp_path)
    assert describe(several).splitlines()[0].startswith("ShardedDataset(10 steps in 2 files")
    assert "5 to 5 steps" in describe(several)
