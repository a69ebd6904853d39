"""Offline data: every layout and format is read as the same steps, once, in place and read-only."""

import gc
import importlib.util
import json
import os
import subprocess
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import (
    COLUMNS,
    CONTROLLER_V15,
    LAYOUTS,
    compact_arrays,
    env_args,
    expected,
    raw_arrays,
    regular_arrays,
    steps_of,
    trajectories,
    write_minari,
    write_robomimic,
)
from gymnasium import spaces
from helpers import warned
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sb3_flow.datasets import (
    OfflineDataset,
    ShardedDataset,
    check_fits,
    from_arrays,
    load_dataset,
    load_ogbench,
    load_robomimic,
    read_env_args,
)
from sb3_flow.datasets.errors import DataError
from sb3_flow.datasets.ogbench import env_id, find_ogbench, measure
from sb3_flow.datasets.robomimic import OBSERVATION_KEYS

TASK = "cube-single-play-singletask-task1-v0"
SPARSE = "cube-double-sparse-play-singletask-task1-v0"
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def assert_same(dataset: Any, wanted: dict[str, NDArray[Any]]) -> None:
    assert isinstance(dataset, OfflineDataset)
    steps = steps_of(dataset)
    for name in COLUMNS:
        np.testing.assert_array_equal(steps[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("layout", ["regular", "compact"])
@given(lengths=LENGTHS, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_arrays_in_every_layout(layout: str, lengths: list[int], seed: int) -> None:
    episodes = trajectories(lengths, seed)
    dataset = from_arrays(LAYOUTS[layout](episodes))
    assert_same(dataset, expected(episodes))
    assert len(dataset) == sum(lengths)
    assert dataset.n_episodes == len(lengths)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_in_every_form(tmp_path: Path, layout: str, save: Any, dtype: Any, order: Any) -> None:
    episodes = trajectories([4, 1, 7])
    path = tmp_path / "data.npz"
    arrays = LAYOUTS[layout](episodes)
    save(path, **{k: v if k == "terminals" else v.astype(dtype, order=order) for k, v in arrays.items()})
    dataset = load_dataset(path)
    assert_same(dataset, expected(episodes))
    assert measure(path) == (len(dataset), dataset.observation_shape, np.float32, dataset.action_dim)


@pytest.mark.parametrize("compact", [True, False])
def test_our_steps_are_ogbenchs(tmp_path: Path, compact: bool) -> None:
    utils = pytest.importorskip("ogbench.utils")
    path = tmp_path / "data.npz"
    np.savez(path, **raw_arrays(trajectories([5, 3, 8])))
    theirs = utils.load_dataset(path, compact_dataset=compact)
    # What ogbench makes of the file, written and read again, is what is read from the file
    with np.load(path) as file:
        kept = (theirs["valids"] >= 0) if compact else ~file["terminals"]
        arrays = theirs | {key: file[key][kept] for key in ("rewards", "masks")}
    assert_same(from_arrays(arrays), steps_of(load_ogbench(path)))  # type: ignore[arg-type]


def test_stored_arrays_are_mapped_and_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **raw_arrays(trajectories([4, 4])))
    dataset = load_ogbench(path)
    base: Any = dataset.observations
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    for name in ("observations", "actions", "rewards", "masks", "ends"):
        array = getattr(dataset, name)
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_users_arrays_are_neither_copied_nor_locked() -> None:
    arrays = regular_arrays(trajectories([4]))
    dataset = from_arrays(arrays)
    for name in ("observations", "actions", "rewards"):
        assert np.shares_memory(arrays[name], getattr(dataset, name))
        assert arrays[name].flags.writeable
    assert dataset.observations.dtype == np.float32


def test_images_stay_bytes() -> None:
    arrays = regular_arrays(trajectories([4]))
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    dataset = from_arrays(arrays | {"observations": images[:-1], "next_observations": images[1:]})
    assert dataset.observations.dtype == np.uint8
    check_fits(dataset, spaces.Box(0, 255, (3, 8, 8), np.uint8), spaces.Box(-1, 1, (2,)))


def test_actions_a_little_outside_are_clipped(tmp_path: Path) -> None:
    arrays = raw_arrays(trajectories([4]))
    arrays["actions"][1] = [1.0005, -1.0]
    np.savez(tmp_path / "data.npz", **arrays)
    # The papers clip OGBench's actions, and no others, to less than 1
    limit = np.float32(1 - 1e-5)
    np.testing.assert_array_equal(load_ogbench(tmp_path / "data.npz").actions[1], [limit, -limit])
    arrays = regular_arrays(trajectories([4]))
    arrays["actions"][1] = [1.0005, -1.0]
    np.testing.assert_array_equal(from_arrays(arrays).actions[1], [1.0, -1.0])


@given(lengths=LENGTHS, horizon=st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_chunks_stay_in_the_data_and_in_order(lengths: list[int], horizon: int) -> None:
    dataset = from_arrays(compact_arrays(trajectories(lengths)))
    starts = dataset.rows(np.arange(len(dataset)))
    rows = dataset.chunk_rows(starts, horizon)
    assert rows.shape == (len(dataset), horizon)
    assert rows.max() < len(dataset.ends)
    steps = np.concatenate([np.arange(n) for n in lengths])
    left = np.concatenate([n - np.arange(n) for n in lengths])  # steps until the episode's end
    for start, row, step, remaining in zip(starts, rows, steps, left, strict=True):
        inside = min(horizon, remaining)
        assert list(row[:inside]) == list(range(start, start + inside)), step
        assert list(dataset.ends[row[:inside]]) == [t == remaining - 1 for t in range(inside)]


# OGBench's tasks


def task_file(path: Path, episodes: int = 2, steps: int = 4, task: str = TASK) -> dict[str, NDArray[Any]]:
    """A file with plausible simulator states, some with every cube at its goal."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench")
    env = gymnasium.make(env_id(task))
    env.reset()
    simulator = env.unwrapped._data
    rows = episodes * (steps + 1)
    rng = np.random.default_rng(0)
    qpos = np.tile(simulator.qpos, (rows, 1)) + rng.normal(scale=0.01, size=(rows, len(simulator.qpos)))
    for cube, goal in enumerate(simulator.mocap_pos):
        qpos[::3, 14 + 7 * cube : 17 + 7 * cube] = goal
    arrays = {
        "observations": rng.normal(size=(rows, *env.observation_space.shape)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        "terminals": np.arange(rows) % (steps + 1) == steps,
        "qpos": qpos.astype(np.float32),
        "qvel": np.zeros((rows, 3), np.float32),
    }
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.slow
def test_relabelled_as_by_ogbench(tmp_path: Path) -> None:
    utils = pytest.importorskip("ogbench.utils")
    path = tmp_path / "cube-single-play-v0.npz"
    task_file(path)
    task_file(tmp_path / "cube-single-play-v0-val.npz")
    _, theirs, _ = utils.make_env_and_datasets(TASK, dataset_path=str(path))
    wanted = {("ends" if name == "terminals" else name): values for name, values in theirs.items()}
    wanted["actions"] = np.clip(wanted["actions"], -np.float32(1 - 1e-5), np.float32(1 - 1e-5))
    assert_same(load_dataset(f"ogbench:{TASK}@{path}"), wanted)
    assert set(wanted["masks"]) == {0.0, 1.0}


@pytest.mark.slow
def test_labels_do_not_depend_on_the_part_they_are_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    task_file(path)
    whole = steps_of(load_ogbench(path, TASK))  # type: ignore[arg-type]
    monkeypatch.setattr("sb3_flow.datasets.ogbench.LABEL_ROWS", 3)
    assert_same(load_ogbench(path, TASK), whole)


@pytest.mark.slow
def test_a_sparse_reward_costs_a_step_whatever_is_missing(tmp_path: Path) -> None:
    task = "cube-double-play-singletask-task1-v0"
    arrays = task_file(tmp_path / "data.npz", task=task)
    arrays["qpos"][1::3, [14, 21]] += 1  # both cubes are away from their goals
    np.savez(tmp_path / "data.npz", **arrays)
    dense, sparse = load_ogbench(tmp_path / "data.npz", task), load_ogbench(tmp_path / "data.npz", SPARSE)
    assert set(steps_of(dense)["rewards"]) == {-2.0, -1.0, 0.0}  # type: ignore[arg-type]
    assert set(steps_of(sparse)["rewards"]) == {-1.0, 0.0}  # type: ignore[arg-type]
    np.testing.assert_array_equal(steps_of(sparse)["masks"], steps_of(dense)["masks"])  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["play-v0", "play-100m-v0"])
def test_sparse_rewards_need_no_data_of_their_own(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"puzzle-4x4-{suffix}.npz"
    file.touch()
    task = f"puzzle-4x4-sparse-{suffix.removesuffix('-v0')}-singletask-task3-v0"
    assert find_ogbench(task, tmp_path) == file


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (TASK, "cube-single-singletask-task1-v0"),
        ("scene-play-singletask-v0", "scene-singletask-v0"),
        ("scene-sparse-play-singletask-task1-v0", "scene-singletask-task1-v0"),
        ("puzzle-4x4-sparse-play-100m-singletask-v0", "puzzle-4x4-singletask-v0"),
        ("cube-quadruple-play-100m-singletask-task2-v0", "cube-quadruple-singletask-task2-v0"),
    ],
)
def test_task_names(task: str, name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench")
    assert env_id(task) == name
    assert gymnasium.spec(name)


# Directories of files


def shards(folder: Path, count: int) -> list[dict[str, NDArray[Any]]]:
    """Files like those of the 100M sets, and one that is none of the training data."""
    wanted = []
    for i in range(count):
        episodes = trajectories([3 + i, 2], seed=i)
        np.savez(folder / f"cube-v0-{i:03}.npz", **raw_arrays(episodes))
        wanted.append(expected(episodes))
    np.savez(folder / "cube-v0-000-val.npz", **raw_arrays(trajectories([9])))
    return wanted


def test_shards_take_turns_by_the_number_of_the_update(tmp_path: Path) -> None:
    wanted = shards(tmp_path, 3)
    # What looks like a folder of episodes is loaded with a word on what that means
    with pytest.warns(UserWarning, match="its 3 files of 6 steps on average take turns, each for 10 updates.*join"):
        dataset = load_ogbench(tmp_path, rotate_every=10)
    assert isinstance(dataset, ShardedDataset)
    assert len(dataset) == sum(len(columns["actions"]) for columns in wanted)
    for update in [0, 9, 10, 19, 20, 29, 30, 5, 25, 1_000_000]:
        assert_same(dataset.at(update), wanted[update // 10 % 3])


def test_at_most_two_shards_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path, 4)
    alive: weakref.WeakSet[OfflineDataset] = weakref.WeakSet()
    most, threads = 0, set()
    init = OfflineDataset.__init__

    def count(self: OfflineDataset, *args: Any, **kwargs: Any) -> None:
        nonlocal most
        init(self, *args, **kwargs)
        alive.add(self)
        threads.add(threading.current_thread().name)
        most = max(most, len(alive))

    monkeypatch.setattr(OfflineDataset, "__init__", count)
    gc.collect()
    dataset = load_ogbench(tmp_path, rotate_every=2)
    for update in [*range(30), 3, 17, 0]:
        dataset.at(update)
        time.sleep(0.005)  # time for reading ahead
    assert most == 2
    assert any(name.startswith("shard") for name in threads), "nothing was read in the background"


def test_a_bad_shard_is_an_error_before_its_turn_or_in_it(tmp_path: Path) -> None:
    shards(tmp_path, 3)
    arrays = raw_arrays(trajectories([3]))
    np.savez(tmp_path / "cube-v0-001.npz", **arrays | {"observations": np.full_like(arrays["observations"], np.nan)})
    dataset = load_ogbench(tmp_path, rotate_every=1)
    with pytest.raises(ValueError, match=r"cube-v0-001\.npz: 'observations' row 0"):
        dataset.at(1)
    np.savez(tmp_path / "cube-v0-002.npz", **arrays | {"actions": arrays["actions"][1:]})
    with pytest.raises(ValueError, match=r"cube-v0-002\.npz.*'actions'"):
        load_ogbench(tmp_path)
    own = regular_arrays(trajectories([3])) | {"qpos": np.zeros((3, 2), np.float32)}
    del own["next_observations"]
    np.savez(tmp_path / "cube-v0-002.npz", **own)
    dataset = load_ogbench(tmp_path, rotate_every=1)
    with pytest.raises(ValueError, match=r"cube-v0-002\.npz: 'next_observations': give it"):
        dataset.at(2)
    unknown = {key: values for key, values in arrays.items() if key != "qpos"}
    np.savez(tmp_path / "cube-v0-002.npz", **unknown)
    with pytest.raises(ValueError, match=r"cube-v0-002\.npz: 'next_observations'"):
        load_ogbench(tmp_path)
    np.savez(tmp_path / "cube-v0-002.npz", **arrays | {"observations": arrays["observations"][:, 1:]})
    with pytest.raises(ValueError, match=r"cube-v0-002\.npz.*observation_shape is \(2,\)"):
        load_ogbench(tmp_path)
    np.savez(tmp_path / "cube-v0-002.npz", **arrays | {"observations": np.float32(0)})
    with pytest.raises(ValueError, match=r"cube-v0-002\.npz: 'observations': it has shape \(\)"):
        load_ogbench(tmp_path)


def test_a_shard_with_an_unmarked_end_is_an_error_in_its_turn(tmp_path: Path) -> None:
    arrays = regular_arrays(trajectories([3, 4]))
    np.savez(tmp_path / "a.npz", **arrays)
    arrays["terminals"][2] = 0
    np.savez(tmp_path / "b.npz", **arrays)
    dataset = load_ogbench(tmp_path, rotate_every=1)
    dataset.at(1)
    dataset.at(0)
    dataset.check_chunks(2)
    with pytest.raises(ValueError, match=r"b\.npz: 'next_observations' row 2"):
        dataset.at(1)


# Robomimic


@pytest.mark.parametrize("storage", [{}, {"compression": "gzip"}, {"checksums": True}])
@pytest.mark.parametrize("dones", ["success", "end", "never"])
def test_robomimic(tmp_path: Path, storage: dict[str, Any], dones: str) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    wanted = write_robomimic(path, [4, 3, 5], names=[10, 2, 0], dones=dones, **storage)
    dataset = load_dataset(path)
    assert_same(dataset, wanted)
    assert dataset.observation_shape == (19,)
    assert_same(load_dataset(f"robomimic:lift/mh@{path}"), wanted)


@pytest.mark.parametrize("dones", ["success", "end", "never"])
def test_robomimic_without_next_obs(tmp_path: Path, dones: str) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    wanted = write_robomimic(path, [4, 4], next_obs=False, dones=dones)
    steps = steps_of(load_robomimic(path))
    # Only where nothing terminated does the last step need the observation that is not there
    kept = np.arange(8) % 4 < (3 if dones == "never" else 4)
    for name in ("observations", "actions", "rewards", "masks"):
        np.testing.assert_array_equal(steps[name], wanted[name][kept])
    bootstraps = steps["masks"] == 1
    np.testing.assert_array_equal(steps["next_observations"][bootstraps], wanted["next_observations"][kept][bootstraps])


def test_robomimic_rewards_that_are_not_used_are_pointed_out(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "low_dim.hdf5"

    def said(rewards: list[float]) -> list[str]:
        write_robomimic(path, [4, 3, 5], dones="end")
        with h5py.File(path, "r+") as file:
            file["data/demo_1/rewards"][:] = rewards
        return warned(lambda: load_robomimic(path))

    assert not said([0, 1, 1])
    (message,) = said([0.5, 0.75, 1])
    assert "the rewards of 1 of 3 demos are not 0 or 1, and are not used: a step costs 1" in message
    (message,) = said([0, 0, 0])
    assert "1 of 3 demos end with dones = 1 and never had a reward. They are learned from as successes" in message


def test_robomimic_without_a_task_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, [4, 3], dones="never")
    (message,) = warned(lambda: load_robomimic(path))
    assert "no demo has a step with dones = 1" in message
    write_robomimic(path, [4, 3], dones="end")
    assert not warned(lambda: load_robomimic(path))


def test_robomimic_names_the_observations_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, [4, 3])
    parts = ", ".join(f"obs/{key}" for key in sorted([*OBSERVATION_KEYS, "robot0_joint_pos"]))
    problem = rf"'data/demo_0/obs/camera': it is missing; there are {parts}; load_robomimic takes .* observation_keys"
    with pytest.raises(DataError, match=problem):
        load_robomimic(path, observation_keys=["camera"])
    assert load_robomimic(path, observation_keys=["object", "robot0_joint_pos"]).observation_shape == (17,)


@pytest.mark.parametrize("next_obs", [True, False])
def test_robomimic_with_images_for_a_dict_space(tmp_path: Path, next_obs: bool) -> None:
    import h5py

    path = tmp_path / "image.hdf5"
    wanted = write_robomimic(path, [4, 3], dones="end", next_obs=next_obs)
    rng = np.random.default_rng(0)
    shown = {}
    with h5py.File(path, "r+") as file:
        for name, steps in (("demo_0", 4), ("demo_1", 3)):
            for camera in ("agentview_image", "eye_in_hand_image"):
                images = shown[name, camera] = rng.integers(0, 255, (steps + 1, 6, 5, 3)).astype(np.uint8)
                file[f"data/{name}/obs"].create_dataset(camera, data=images[:-1])
                if next_obs:
                    file[f"data/{name}/next_obs"].create_dataset(camera, data=images[1:])
    cameras = ["agentview_image", "eye_in_hand_image"]
    keys = {"cameras": cameras, "state": OBSERVATION_KEYS}
    dataset = load_robomimic(path, observation_keys=keys)
    assert dataset.observation_shape == {"cameras": (6, 6, 5), "state": (19,)}
    rows = dataset.rows(np.arange(len(dataset)))
    before, after = dataset.observations_at(rows), dataset.next_observations(rows)
    np.testing.assert_array_equal(before["state"], wanted["observations"])
    goes_on = wanted["masks"] == 1
    np.testing.assert_array_equal(after["state"][goes_on], wanted["next_observations"][goes_on])
    for found, moments in ((before, slice(0, -1)), (after, slice(1, None))):
        views = [np.concatenate([shown[name, camera][moments] for name in ("demo_0", "demo_1")]) for camera in cameras]
        images = np.concatenate(views, axis=3).transpose(0, 3, 1, 2)
        kept = goes_on if found is after else slice(None)  # without next_obs nobody knows the final ones
        np.testing.assert_array_equal(found["cameras"][kept], images[kept])
    assert load_robomimic(path, observation_keys=["agentview_image"]).observation_shape == (3, 6, 5)
    with pytest.raises(DataError, match=r"data/demo_0/obs': it has object, agentview_image, which are not of one size"):
        load_robomimic(path, observation_keys=["object", "agentview_image"])
    assert load_robomimic(path, observation_keys={"camera": "agentview_image"}).observation_shape == {
        "camera": (3, 6, 5)
    }
    for nothing in ({}, [], "", {"camera": []}):
        with pytest.raises(ValueError, match=r"observation_keys=.* is not allowed: name one at least"):
            load_robomimic(path, observation_keys=nothing)
    with h5py.File(path, "r+") as file:
        for group in ["obs", "next_obs"][: 1 + next_obs]:
            del file[f"data/demo_1/{group}/agentview_image"]
            file[f"data/demo_1/{group}"].create_dataset("agentview_image", data=np.zeros((3, 7, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"agentview_image': its rows have 7x5x3 numbers, those of data/demo_0 6x5x3"):
        load_robomimic(path, observation_keys=["agentview_image"])
    for images, message in (
        (np.zeros((4, 3, 6, 5), np.uint8), r"images have their 1, 3 or 4 channels last here"),
        (np.zeros((4, 6, 5, 3), np.float32), r"is float32; images are uint8"),
    ):
        with h5py.File(path, "r+") as file:
            del file["data/demo_0/obs/agentview_image"]
            file["data/demo_0/obs"].create_dataset("agentview_image", data=images)
        with pytest.raises(DataError, match=rf"'data/demo_0/obs/agentview_image': it has shape .*{message}"):
            load_robomimic(path, observation_keys=["agentview_image"])


def test_robomimic_filter_keys(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, [4, 3, 5, 2], names=[0, 1, 2, 11], masks={"better": [11, 2], "train": [0]})
    dataset = load_dataset(f"robomimic:lift/mh/better@{path}")
    assert isinstance(dataset, OfflineDataset)
    everything = steps_of(load_robomimic(path))
    np.testing.assert_array_equal(steps_of(dataset)["actions"], everything["actions"][7:])
    with pytest.raises(ValueError, match=r"mask/worse.*there are \['better', 'train'\]"):
        load_robomimic(path, filter_key="worse")


def test_robomimic_env_args_of_both_versions_become_the_new_form(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    for args in (env_args(), env_args(CONTROLLER_V15, "1.5.1")):
        write_robomimic(path, [2], args=args)
        assert read_env_args(path) == env_args(CONTROLLER_V15, args["env_version"])


# Minari


@pytest.mark.parametrize("where", ["path", "id"])
def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    lengths = [4, 1, 3]
    folder = write_minari(tmp_path / "test" / "random-v0" / "data", lengths)
    dataset = load_dataset(folder.parent if where == "path" else "minari:test/random-v0")
    assert isinstance(dataset, OfflineDataset)
    steps, begin = steps_of(dataset), 0
    for i, episode in enumerate(minari.MinariDataset(folder)):
        rows = slice(begin, begin + lengths[i])
        np.testing.assert_array_equal(steps["observations"][rows], episode.observations[:-1].astype(np.float32))
        np.testing.assert_array_equal(steps["next_observations"][rows], episode.observations[1:].astype(np.float32))
        np.testing.assert_allclose(steps["actions"][rows], (episode.actions + 0.5) / 1.5, atol=1e-6)
        np.testing.assert_array_equal(steps["rewards"][rows], episode.rewards.astype(np.float32))
        np.testing.assert_array_equal(steps["masks"][rows], 1 - episode.terminations)
        np.testing.assert_array_equal(steps["ends"][rows], np.arange(lengths[i]) == lengths[i] - 1)
        begin += lengths[i]
    assert begin == len(dataset)


# Names


def test_a_dataset_is_itself() -> None:
    dataset = from_arrays(regular_arrays(trajectories([2])))
    assert load_dataset(dataset) is dataset
    assert dataset.at(123) is dataset


def no_network(*args: Any, **kwargs: Any) -> None:
    raise OSError("no route to host")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (f"ogbench:{TASK}", ["cube-single-play-v0.npz", ".ogbench/data", "no route to host", "rail.eecs.berkeley.edu"]),
        ("ogbench:cube-quadruple-play-100m-singletask-task1-v0", ["cube-quadruple-play-100m-v0", "wget"]),
        ("robomimic:can/ph", [".robomimic/can/ph/low_dim_v15.hdf5", "robomimic.github.io"]),
        ("minari:mujoco/hopper/medium-v0", ["hopper/medium-v0", "no route to host", "minari download"]),
        ("/nowhere/data.npz", ["/nowhere/data.npz"]),
        ("/nowhere/data.hdf5", ["/nowhere/data.hdf5"]),
        ("nonsense", ["nonsense", "ogbench:"]),
    ],
)
def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: list[str]) -> None:
    minari, ogbench = pytest.importorskip("minari"), pytest.importorskip("ogbench")
    pytest.importorskip("h5py")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setattr(ogbench, "download_datasets", no_network)
    monkeypatch.setattr(minari, "download_dataset", no_network)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(spec)
    for word in words:
        assert word in str(error.value)


def test_what_ogbench_downloads_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ogbench = pytest.importorskip("ogbench")
    monkeypatch.setenv("HOME", str(tmp_path))

    def download(names: list[str], folder: str) -> None:
        os.makedirs(folder)
        task_file(Path(folder) / f"{names[0]}.npz")

    monkeypatch.setattr(ogbench, "download_datasets", download)
    assert len(load_dataset(f"ogbench:{TASK}")) == 8


def fake_robomimic(monkeypatch: pytest.MonkeyPatch, home: Path, download: Any) -> None:
    """An installed robomimic whose download script is a function of its options."""

    def run(command: list[str], check: bool) -> None:
        assert command[1:3] == ["-m", "robomimic.scripts.download_datasets"]
        assert check
        download(dict(zip(command[3::2], command[4::2], strict=True)))

    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)


def test_what_robomimic_downloads_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")

    def download(options: dict[str, str]) -> None:
        assert options["--hdf5_types"] == "low_dim"
        folder = Path(options["--download_dir"], options["--tasks"], options["--dataset_types"])
        folder.mkdir(parents=True)
        write_robomimic(folder / "low_dim_v15.hdf5", [3, 4])

    fake_robomimic(monkeypatch, tmp_path, download)
    assert len(load_dataset("robomimic:lift/mh")) == 7
    fake_robomimic(monkeypatch, tmp_path, no_network)
    assert len(load_dataset("robomimic:lift/mh")) == 7  # it is there now


@pytest.mark.parametrize(
    ("download", "words"), [(no_network, "download failed.*no route to host.*Get it"), (lambda options: None, "Get it")]
)
def test_a_download_by_robomimic_that_brings_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: Any, words: str
) -> None:
    fake_robomimic(monkeypatch, tmp_path, download)
    with pytest.raises(FileNotFoundError, match=f"Robomimic's lift/mh was not found.*{words}"):
        load_dataset("robomimic:lift/mh")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "ogbench:",
        "ogbench:cube",
        "robomimic:lift",
        "robomimic:lift/xx",
        "robomimic:lift@x.hdf5",
        "robomimic:lift/worse@x.hdf5",
        "ogbench:cube-double-singletask-task2-v0",
        "minari:",
        3,
        None,
        ["a.npz"],
    ],
)
def test_specs_that_say_nothing(spec: Any) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        load_dataset(spec)


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.touch()
    with pytest.raises(ValueError, match=r"^offline_dataset='.*data\.csv' is not allowed: a file ends in \.npz"):
        load_dataset(path)


def test_unknown_tasks(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("ogbench")
    with pytest.raises(ValueError, match="no environment sphere-singletask-v0"):
        load_dataset(f"ogbench:sphere-play-singletask-v0@{tmp_path}/a.npz")
    write_robomimic(tmp_path / "a.hdf5", [3])
    with pytest.raises(ValueError, match=r"^task='juggle' is not allowed: choose one of 'lift', 'can', 'square'"):
        load_dataset(f"robomimic:juggle/mh@{tmp_path}/a.hdf5")
    with pytest.raises(ValueError, match="are of 'Lift', but 'can' is 'PickPlaceCan'"):
        load_dataset(f"robomimic:can/mh@{tmp_path}/a.hdf5")


def test_check_fits() -> None:
    dataset = from_arrays(regular_arrays(trajectories([2])))
    observations, actions = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    check_fits(dataset, observations, actions)
    wrong: list[tuple[spaces.Space[Any], spaces.Space[Any], str]] = [
        (spaces.Box(-1, 1, (4,)), actions, r"'observations': one has shape \(3,\)"),
        (spaces.Discrete(3), actions, "'observations'"),
        (spaces.Dict({"a": observations}), actions, "'observations'"),
        (observations, spaces.Box(-1, 1, (3,)), "'actions': one has 2 numbers"),
        (observations, spaces.Discrete(2), "'actions'"),
    ]
    for observation_space, action_space, message in wrong:
        with pytest.raises(ValueError, match=message):
            check_fits(dataset, observation_space, action_space)


@pytest.mark.parametrize(("data", "env"), [(np.uint8, np.float32), (np.float32, np.uint8)])
def test_images_of_another_scale_are_refused(data: Any, env: Any) -> None:
    dataset = from_arrays(
        regular_arrays(trajectories([2]))
        | dict.fromkeys(("observations", "next_observations"), np.zeros((2, 3, 8, 8), data))
    )
    with pytest.raises(ValueError, match=f"'observations': they are {np.dtype(data)}, but"):
        check_fits(dataset, spaces.Box(0, 255, (3, 8, 8), env), spaces.Box(-1, 1, (2,)))


def test_chunks_need_an_episode_of_their_length() -> None:
    arrays = regular_arrays(trajectories([3, 4, 2])) | {"masks": np.ones(9)}
    from_arrays(arrays).check_chunks(4)
    with pytest.raises(ValueError, match=r"'terminals': the longest episode has 4 steps; horizon_length=5"):
        from_arrays(arrays).check_chunks(5)


def test_short_episodes_that_terminate_are_whole_chunks() -> None:
    arrays = regular_arrays(trajectories([3, 4, 2])) | {"masks": np.array([1, 1, 0] + [1] * 6)}
    from_arrays(arrays).check_chunks(5)


def test_chunks_need_every_episodes_end() -> None:
    from_arrays(compact_arrays(trajectories([3, 4, 2]))).check_chunks(2)
    arrays = regular_arrays(trajectories([3, 4, 2]))
    arrays["terminals"][6] = 0
    from_arrays(arrays).check_chunks(1)
    with pytest.raises(ValueError, match=r"'next_observations' row 6: .*'?terminals'? does not mark"):
        from_arrays(arrays).check_chunks(2)


def test_loading_warns_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    arrays = raw_arrays(trajectories([4]))
    # So large that a sum over them is not finite
    np.savez(path, **arrays | {"observations": np.full_like(arrays["observations"], 3e38)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset(path)) == 4


def test_repr_says_what_it_is(tmp_path: Path) -> None:
    shards(tmp_path, 2)
    assert repr(from_arrays(regular_arrays(trajectories([2, 3])))) == (
        "OfflineDataset(5 steps, 2 episodes, observations (3,), actions 2, from the dataset)"
    )
    assert json.dumps(str(tmp_path))[1:-1] in repr(load_ogbench(tmp_path))
