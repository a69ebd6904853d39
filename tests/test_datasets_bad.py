"""Bad data are refused with an error that names file, key and row; damaged files never crash, hang or pass unseen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import (
    COLUMNS,
    compact_arrays,
    damage,
    env_args,
    raw_arrays,
    regular_arrays,
    steps_of,
    time_limit,
    trajectories,
    write_minari,
    write_robomimic,
)
from gymnasium import spaces

from sb3_flow.datasets import (
    DataError,
    Dataset,
    OfflineDataset,
    from_arrays,
    load_dataset,
    load_minari,
    load_ogbench,
    load_robomimic,
    read_env_args,
)

LENGTHS = [4, 3]
FUZZED = 500
# Arrays of more than 4 KB: zipfile verifies smaller ones while their header is read
LONG = [600, 900, 500]


def changed(key: str, value: Any, row: Any = ...) -> Callable[[dict[str, Any]], None]:
    """A change of an array, from some row on or in one."""

    def change(arrays: dict[str, Any]) -> None:
        arrays[key] = np.array(arrays[key])
        arrays[key][row] = value

    return change


def replaced(key: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[key] = make(arrays[key])

    return change


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        del arrays[key]

    return change


# Of the arrays of ogbench's regular form: what is changed, and what the error says
BAD_ARRAYS = [
    *[(without(key), f"'{key}': it is missing") for key in ("observations", "actions", "terminals")],
    (without("next_observations"), "'next_observations': give it, the observation after each row's action, or valids"),
    (changed("observations", np.nan, (5, 1)), "'observations' row 5: it is NaN or infinite"),
    (changed("observations", -np.inf, (6, 2)), "'observations' row 6: it is NaN or infinite"),
    (changed("next_observations", np.nan, (2, 0)), "'next_observations' row 2"),
    (changed("rewards", np.inf, 3), "'rewards' row 3"),
    (changed("actions", np.nan, (3, 1)), "'actions' row 3: it is NaN or infinite"),
    (changed("actions", 1.002, (3, 1)), r"'actions' row 3: actions must be in \[-1, 1\].*one is 1.002"),
    (changed("actions", -2.0, (6, 0)), r"'actions' row 6: actions must be in \[-1, 1\].*one is 2"),
    (changed("masks", 0.5, 1), "'masks' row 1: it is 0.5, not 0 or 1"),
    (replaced("terminals", lambda v: 2 * v), "'terminals' row 3: it is 2, not 0 or 1"),
    (changed("terminals", 0, 6), "'terminals' row 6: here the data stop, but the episode never ends"),
    (replaced("actions", lambda v: v[:-1]), r"'actions': it has shape \(6, 2\), not \(7, any\)"),
    (replaced("actions", lambda v: v[:, 0]), r"'actions': it has shape \(7,\), not \(7, any\)"),
    (replaced("rewards", lambda v: v[:, None]), r"'rewards': it has shape \(7, 1\), not \(7,\)"),
    (replaced("terminals", lambda v: v[1:]), r"'terminals': it has shape \(6,\), not \(7,\)"),
    (replaced("observations", lambda v: v[:, 0]), r"'observations': it has shape \(7,\)"),
    (replaced("next_observations", lambda v: v[:, 1:]), r"'next_observations': it has shape \(7, 2\), not \(7, 3\)"),
    (replaced("rewards", lambda v: v.astype(str)), "'rewards': it has dtype <U.*, not numbers"),
    (replaced("actions", lambda v: v.astype(complex)), "'actions': it has dtype complex128, not numbers"),
    (replaced("rewards", lambda v: v.astype(object)), "'rewards': it holds pickled objects"),
    (replaced("observations", lambda v: v.astype(np.float64) * 1e300), "'observations' row 0: it is NaN or infinite"),
]


@pytest.mark.parametrize("form", ["arrays", "npz", "compressed npz"])
@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, form: str, change: Callable[[dict[str, Any]], None], message: str) -> None:
    arrays: dict[str, Any] = regular_arrays(trajectories(LENGTHS))
    change(arrays)
    if form == "arrays":
        with pytest.raises(DataError, match=message):
            load_dataset(arrays)
    else:
        path = tmp_path / "data.npz"
        (np.savez if form == "npz" else np.savez_compressed)(path, **arrays)
        with pytest.raises(DataError, match=rf"data\.npz: {message}"):
            load_dataset(path)


@pytest.mark.parametrize("key", ["observations", "terminals"])
def test_rows_of_different_lengths(key: str) -> None:
    arrays: dict[str, Any] = regular_arrays(trajectories(LENGTHS))
    arrays[key] = [*arrays[key].tolist()[:-1], [0.0]]
    with pytest.raises(DataError, match=f"'{key}': its rows have different lengths"):
        load_dataset(arrays)


@pytest.mark.parametrize("key", ["rewards", "masks"])
def test_arrays_without_labels(tmp_path: Path, key: str) -> None:
    arrays = regular_arrays(trajectories(LENGTHS))
    del arrays[key]
    np.savez(tmp_path / "data.npz", **arrays)
    for load in (lambda: from_arrays(arrays), lambda: load_ogbench(tmp_path / "data.npz")):
        with pytest.raises(DataError, match=f"'{key}': it is missing"):
            load()


@pytest.mark.parametrize(
    ("new", "old", "hint"),
    [
        ("obs", "observations", "rename obs if it is that"),
        ("dones", "masks", "dones say less than masks and terminals"),
    ],
)
def test_another_name_for_an_array_is_recognised(new: str, old: str, hint: str) -> None:
    arrays = regular_arrays(trajectories([3]))
    arrays[new] = arrays.pop(old)
    with pytest.raises(DataError, match=f"'{old}': it is missing; there are .*; {hint}"):
        from_arrays(arrays)


@pytest.mark.parametrize(("reward", "mask"), [(1.0, 1.0), (0.0, 0.0)])
def test_a_robots_qpos_makes_no_published_file_of_ones_own(reward: float, mask: float, tmp_path: Path) -> None:
    arrays = regular_arrays(trajectories([5, 5]))
    del arrays["next_observations"]
    arrays["rewards"], arrays["masks"] = np.zeros(10, np.float32), np.ones(10, np.float32)
    arrays["rewards"][9], arrays["masks"][9] = reward, mask
    np.savez(tmp_path / "data.npz", **arrays, qpos=np.zeros((10, 7), np.float32))
    with pytest.raises(DataError, match=r"'next_observations': give it: .* but row 9 has a reward, or a mask of 0"):
        load_dataset(tmp_path / "data.npz")


def test_d4rls_arrays_are_told_what_masks_are() -> None:
    arrays = regular_arrays(trajectories([3]))
    arrays["timeouts"] = arrays.pop("masks")
    with pytest.raises(DataError, match=r"masks = 1 - terminals, and then terminals = terminals \| timeouts"):
        from_arrays(arrays)


def test_a_minari_dataset_is_named_by_its_id() -> None:
    class MinariDataset:
        id = "mujoco/hopper/medium-v0"

    MinariDataset.__module__ = "minari.dataset.minari_dataset"
    with pytest.raises(ValueError, match='is not allowed: give "minari:mujoco/hopper/medium-v0"'):
        load_dataset(MinariDataset())  # type: ignore[arg-type]


def test_masks_that_seem_to_be_turned_around_are_told_of() -> None:
    arrays = regular_arrays(trajectories([20]))
    with pytest.warns(UserWarning, match=r"masks are 0 in 19 of 20 steps, which makes these terminal"):
        from_arrays(arrays | {"masks": arrays["terminals"]})


def test_arrays_whose_next_observations_are_unknown() -> None:
    arrays = compact_arrays(trajectories(LENGTHS))
    with pytest.raises(
        DataError, match="'next_observations': give it, the observation after each row's action, or valids"
    ):
        from_arrays({key: values for key, values in arrays.items() if key != "valids"})
    with pytest.raises(
        DataError, match="'next_observations': give it, the observation after each row's action, or valids"
    ):
        from_arrays(arrays | {"next_observations": arrays["observations"]})
    bad = arrays | {"valids": np.ones_like(arrays["valids"])}
    bad["masks"] = np.ones_like(bad["masks"])
    with pytest.raises(DataError, match="'terminals' row 3: the row after an episode's last step"):
        from_arrays(bad)
    with pytest.raises(DataError, match="it has no steps"):
        from_arrays(arrays | {"valids": np.zeros_like(arrays["valids"])})


@pytest.mark.parametrize("arrays", [{}, {"observations": np.zeros((0, 3))}])
def test_no_data(arrays: dict[str, Any]) -> None:
    empty = {key: values[:0] for key, values in regular_arrays(trajectories(LENGTHS)).items()}
    with pytest.raises(DataError, match="'observations'"):
        from_arrays(arrays and empty | arrays)


def test_a_published_file_that_stops_in_an_episode(tmp_path: Path) -> None:
    arrays = raw_arrays(trajectories(LENGTHS))
    arrays["terminals"][-1] = False
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=r"data\.npz: 'terminals' row 8: .* never ends"):
        load_ogbench(tmp_path / "data.npz")


def test_dicts_of_observations_that_no_space_has_are_refused(tmp_path: Path) -> None:
    arrays = regular_arrays(trajectories(LENGTHS))
    whole, after = arrays["observations"], arrays["next_observations"]
    dicts = {"observations": {"a": whole, "b": whole}, "next_observations": {"a": after, "b": after}}
    assert load_dataset({**arrays, **dicts}).observation_shape == {"a": (3,), "b": (3,)}
    nan = whole.copy()
    nan[2] = np.nan
    for changed, message in (
        ({"observations": {"a": {"b": whole}}}, r"'observations/a': it is a dict in a dict"),
        ({"observations": {}}, r"'observations': it is a dict without arrays"),
        ({"observations": {"a": whole, "b": whole[1:]}}, rf"'observations/b': it has shape .* not \({len(whole)}, 3\)"),
        ({"observations": {"a": whole, "b": nan}}, r"'observations/b' row 2: it is NaN"),
        ({"observations": {"a": whole, "b": whole[:, 0]}}, r"'observations/b': it has shape .*, not \(steps, ...\)"),
        ({"next_observations": {"a": after}}, r"'next_observations': it has a, the observations a, b"),
        ({"next_observations": after}, r"'next_observations': it has a single array, the observations a, b"),
        ({"next_observations": {"a": after, "b": after[:, :2]}}, r"'next_observations/b': it has shape"),
        ({"next_observations": {"a": after, "b": after.astype(np.uint8)}}, r"'next_observations/b': its dtype differs"),
        ({"observations/c": whole}, r"'observations': it is there beside observations/c"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset({**arrays, **dicts, **changed})
    np.savez(tmp_path / "data.npz", **arrays, **{"observations/c": whole})
    with pytest.raises(DataError, match=r"'observations': it is there beside observations/c"):
        load_dataset(tmp_path / "data.npz")


class Bomb:
    """Sets a flag when it is unpickled."""

    exploded = False

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def explode() -> None:
    Bomb.exploded = True


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    arrays = raw_arrays(trajectories(LENGTHS))
    for key in ("observations", "actions", "terminals", "rewards"):
        np.savez(tmp_path / "data.npz", **arrays | {key: np.array([Bomb()], dtype=object)})
        with pytest.raises(DataError, match=f"'{key}': it holds pickled objects"):
            load_ogbench(tmp_path / "data.npz")
    (tmp_path / "data.npz").write_bytes(__import__("pickle").dumps(Bomb()))
    with pytest.raises(DataError, match=r"data\.npz: cannot be read"):
        load_ogbench(tmp_path / "data.npz")
    assert not Bomb.exploded


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("qpos", None, "'qpos': it is missing"),
        ("qpos", np.zeros((3, 21), np.float32), r"'qpos': it has shape \(3, 21\), not \(9, any\)"),
        ("qpos", np.zeros((9, 28), np.float32), r"'qpos': it has shape \(9, 28\), not \(9, 21\)"),
        ("qpos", np.full((9, 21), np.nan, np.float32), "'qpos' row 0: it is NaN"),
        ("observations", np.zeros((9, 37), np.float32), r"'observations': one has shape \(37,\), but the environment"),
        ("actions", np.zeros((9, 4), np.float32), "'actions': one has 4 numbers, but the environment"),
    ],
)
def test_another_tasks_data(tmp_path: Path, key: str, value: Any, message: str) -> None:
    pytest.importorskip("ogbench")
    arrays = raw_arrays(trajectories(LENGTHS))
    arrays |= {"observations": np.zeros((9, 28), np.float32), "actions": np.zeros((9, 5), np.float32)}
    arrays["qpos"] = np.zeros((9, 21), np.float32)
    if value is None:
        del arrays[key]
    else:
        arrays[key] = value
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=rf"data\.npz: {message}"):
        load_ogbench(tmp_path / "data.npz", "cube-single-play-singletask-task1-v0")


# Robomimic


def set_array(key: str, make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        values = make(file[key][()])
        del file[key]
        file[key] = values

    return change


def at(index: Any, value: Any) -> Callable[[Any], Any]:
    def make(values: Any) -> Any:
        values[index] = value
        return values

    return make


def remove(key: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key]

    return change


def attribute(key: str, name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[key].attrs[name] = value

    return change


def unwritten(file: Any) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", shape=(4, 7), dtype="f8")


def extra_demo(file: Any) -> None:
    file["data"].create_group("demo_x")


def narrowed(demo: str, key: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        for part in ("obs", "next_obs"):
            set_array(f"{demo}/{part}/{key}", lambda v: v[:, 1:])(file)

    return change


def no_demos(file: Any) -> None:
    del file["data"]
    file.create_group("data")


BAD_DEMOS = [
    (remove("data"), "'data': it is missing"),
    (no_demos, "'data': it has no demos"),
    (extra_demo, "'data/demo_x': it is no demo"),
    (remove("data/demo_1/actions"), "'data/demo_1/actions': it is missing"),
    (remove("data/demo_1/dones"), "'data/demo_1/dones': it is missing"),
    (remove("data/demo_1/obs/object"), "'data/demo_1/obs/object': it is missing"),
    (remove("data/demo_1/next_obs/object"), "'data/demo_1/next_obs/object': it is missing"),
    (remove("data/demo_1"), r"'data.attrs\[total\]': it says 7 steps, but the demos' num_samples add up to 4"),
    (set_array("data/demo_1/actions", lambda v: v[:0]), r"'data/demo_1/actions': .*\(0, 7\): the demo has no frames"),
    (set_array("data/demo_1/actions", lambda v: v[:, 0]), "'data/demo_1/actions': .*the demo has no frames"),
    (set_array("data/demo_1/actions", lambda v: v[1:]), "'data/demo_1/actions': it has 2 frames, .*num_samples is 3"),
    (set_array("data/demo_1/actions", lambda v: v.astype("S8")), "'data/demo_1/actions': it has dtype"),
    (set_array("data/demo_1/actions", at((2, 6), np.nan)), "'data/demo_1/actions' row 2: it is NaN"),
    (set_array("data/demo_1/actions", at((1, 0), 1.1)), "'data/demo_1/actions' row 1: actions must be in"),
    (set_array("data/demo_0/dones", at(3, 7)), "'data/demo_0/dones' row 3: it is 7, not 0 or 1"),
    (set_array("data/demo_0/dones", lambda v: v[1:]), r"'data/demo_0/dones': it has shape \(3,\), not \(4,\)"),
    (set_array("data/demo_0/obs/object", at((3, 1), np.inf)), "'data/demo_0/obs/object' row 3: it is NaN"),
    (set_array("data/demo_0/obs/object", lambda v: v[1:]), r"'data/demo_0/obs/object': it has shape \(3, 10\)"),
    (set_array("data/demo_0/obs/object", at((2, 1), 0.5)), "'data/demo_0/next_obs/object' row 1: it differs"),
    (set_array("data/demo_1/actions", lambda v: v[:, 1:]), "'data/demo_1/actions': its rows have 6 numbers, .* 7"),
    (narrowed("data/demo_1", "object"), "'data/demo_1/obs/object': its rows have 9 numbers, those of data/demo_0 10"),
    (unwritten, "'data/demo_0/actions': the file does not hold all numbers"),
]


@pytest.mark.parametrize(("change", "message"), BAD_DEMOS)
def test_bad_demos(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, LENGTHS)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(DataError, match=rf"low_dim\.hdf5: {message}"):
        load_robomimic(path)


@pytest.mark.parametrize("value", ["{", "[]", '{"env_name": "Lift"}', 3])
def test_bad_env_args(tmp_path: Path, value: Any) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, LENGTHS)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = value
    with pytest.raises(DataError, match=r"low_dim\.hdf5: 'data\.attrs\[env_args\]'"):
        read_env_args(path)
    with pytest.raises(DataError, match=r"low_dim\.hdf5: 'data\.attrs\[env_args\]'"):
        load_robomimic(path, "lift")


def test_demos_of_another_task(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_robomimic(tmp_path / "a.hdf5", LENGTHS, args=env_args(name="PickPlaceCan"))
    load_robomimic(tmp_path / "a.hdf5", "can")
    with pytest.raises(DataError, match="of 'PickPlaceCan', but 'lift' is 'Lift'"):
        load_robomimic(tmp_path / "a.hdf5", "lift")


# Minari


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("episode_1"), ""),
        (remove("episode_1/rewards"), ""),
        (set_array("episode_1/rewards", at(1, np.nan)), "'episode_1/rewards' row 1: it is NaN"),
        (set_array("episode_1/rewards", lambda v: v[1:]), r"'episode_1/actions': it has shape \(3, 2\), not \(2, 2\)"),
        (set_array("episode_1/observations", lambda v: v[1:]), "'episode_1/observations': it has 3 rows, .*need 4"),
        (set_array("episode_1/observations", at((3, 0), np.nan)), "'episode_1/observations' row 3: it is NaN"),
        (set_array("episode_1/observations", lambda v: v[:, 1:]), r"'episode_1/observations': it has shape \(4, 2\)"),
        (set_array("episode_1/actions", at((2, 0), 1.5)), "'episode_1/actions' row 2: actions must be in"),
        (set_array("episode_1/truncations", at(2, False)), "'episode_1/terminations' row 2: the episode never ends"),
    ],
)
def test_bad_minari_data(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("minari")
    folder = write_minari(tmp_path / "data", LENGTHS)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        change(file)
    with pytest.raises(DataError, match=rf"data: {message}"):
        load_minari(folder)


def test_the_part_of_minaris_observations_that_lacks_one_is_named(tmp_path: Path) -> None:
    h5py, minari = pytest.importorskip("h5py"), pytest.importorskip("minari")
    folder = write_minari(tmp_path / "data", [6, 9])
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        for i in range(2):
            values = file[f"episode_{i}/observations"][:]
            del file[f"episode_{i}/observations"]
            file[f"episode_{i}/observations/position"] = values
            file[f"episode_{i}/observations/goal"] = values[: len(values) - i]
    metadata = json.loads((folder / "metadata.json").read_text())
    part = spaces.Box(-np.inf, np.inf, values.shape[1:], np.float64)
    space = minari.serialization.serialize_space(spaces.Dict({"goal": part, "position": part}))
    (folder / "metadata.json").write_text(json.dumps({**metadata, "observation_space": space}))
    with pytest.raises(DataError, match=r"'episode_1/observations/goal': it has 9 rows, but 9 steps need 10"):
        load_minari(folder)


# Damaged files


Steps = dict[str, Any]


def fuzz(path: Path, load: Callable[[], Dataset], named: str | None = None) -> list[tuple[Steps, Steps]]:
    """Load damaged copies of a file.

    :param named: what the errors name; None for the file
    :return: right and read steps of those that were accepted although they differ
    """
    right, data = all_steps(load()), path.read_bytes()
    accepted: list[tuple[Steps, Steps]] = []
    refused: list[str] = []
    for seed in range(FUZZED):
        # A new file each time: what is mapped must not change under the reader
        path.unlink()
        path.write_bytes(damage(data, np.random.default_rng(seed)))
        try:
            with time_limit(5):
                read = all_steps(load())
        except ValueError as error:
            refused.append(str(error))
        else:
            if not all(np.array_equal(right[name], read[name]) for name in COLUMNS):
                accepted.append((right, read))
    assert len(refused) > FUZZED // 4
    assert [message for message in refused if (named or path.name) not in message] == []
    return accepted


def all_steps(dataset: Dataset) -> Steps:
    """The steps of a dataset, of all files if it has several."""
    if isinstance(dataset, OfflineDataset):
        return steps_of(dataset)
    turns = [steps_of(dataset.at(i * dataset.rotate_every)) for i in range(len(dataset.paths))]
    return {name: np.concatenate([turn[name] for turn in turns]) for name in COLUMNS}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("make", [raw_arrays, regular_arrays, compact_arrays])
def test_no_damaged_npz_is_accepted(tmp_path: Path, save: Any, make: Any) -> None:
    path = tmp_path / "data.npz"
    save(path, **make(trajectories(LONG)))
    assert not fuzz(path, lambda: load_ogbench(path))


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["0.npz", "1.npz"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damaged_shard_is_accepted(tmp_path: Path, save: Any, shard: str) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.npz", **raw_arrays(trajectories(LONG, seed=i)))
    assert not fuzz(tmp_path / shard, lambda: load_ogbench(tmp_path))


@pytest.mark.slow
def test_no_damaged_hdf5_with_checksums_is_accepted(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, [6, 9, 4], checksums=True)
    assert not fuzz(path, lambda: load_robomimic(path, "lift"))


def assert_only_numbers_changed(accepted: list[tuple[Steps, Steps]]) -> None:
    """Without checksums a changed digit is another number, and no reader can know; all else is noticed."""
    assert len(accepted) < FUZZED // 10
    for right, read in accepted:
        for name in COLUMNS:
            assert right[name].shape == read[name].shape
            assert np.isfinite(read[name]).all()
        assert np.array_equal(right["ends"], read["ends"])
        assert np.abs(read["actions"]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("storage", [{}, {"compression": "gzip"}])
def test_damaged_hdf5_of_robomimics_own_form(tmp_path: Path, storage: dict[str, Any]) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "low_dim.hdf5"
    write_robomimic(path, [6, 9, 4], **storage)
    assert_only_numbers_changed(fuzz(path, lambda: load_robomimic(path, "lift")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_damaged_minari(tmp_path: Path, name: str) -> None:
    pytest.importorskip("minari")
    folder = write_minari(tmp_path / "data", [6, 9, 4])
    assert_only_numbers_changed(fuzz(folder / name, lambda: load_minari(folder), named=folder.name))
