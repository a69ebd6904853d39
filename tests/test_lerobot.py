"""LeRobot's datasets: two that LeRobot recorded (tests/data/lerobot/record.py), and others in their form."""

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import ACT, OBS, damage, regular_arrays, steps_of, time_limit, trajectories, write_lerobot
from gymnasium import spaces
from helpers import RandomEnv, make_any, warned
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sb3_flow.datasets import DataError, OfflineDataset, load_dataset, load_fitting, load_lerobot
from sb3_flow.datasets.lerobot import find_lerobot

pytest.importorskip("pyarrow")
pytest.importorskip("av")

RECORDED = Path(__file__).parent / "data" / "lerobot"
FORMATS = ["v2.1", "v3.0"]
LENGTHS = [5, 7, 6]
PICTURE = spaces.Box(0, 255, (32, 48, 3), np.uint8)
STATE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(np.float32([0, -1]), np.float32([1, 1]), dtype=np.float32)
ROBOT = spaces.Dict({"state": STATE, "top": PICTURE, "wrist": PICTURE})


@pytest.fixture(params=FORMATS)
def recorded(request: pytest.FixtureRequest) -> Path:
    return RECORDED / str(request.param)


def random_columns(lengths: list[int], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Frames of random episodes, that succeed in turns."""
    rng, frames = np.random.default_rng(seed), sum(lengths)
    success = np.zeros(frames, dtype=np.bool_)
    success[np.cumsum(lengths)[::2] - 1] = True
    return {
        "observation.state": rng.normal(size=(frames, OBS)).astype(np.float32),
        "action": rng.uniform(-1, 1, (frames, ACT)).astype(np.float32),
        "next.reward": rng.normal(size=frames).astype(np.float32),
        "next.success": success,
    }


def quietly(path: Path, **kwargs: Any) -> OfflineDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_lerobot(path, **kwargs)


def edit_info(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("as_spec", [False, True])
def test_what_lerobot_recorded_is_read_as_it_was_shown(recorded: Path, as_spec: bool) -> None:
    spec = f"lerobot:test/drawn@{recorded}" if as_spec else recorded
    dataset = load_dataset(spec, ROBOT, ACTIONS)
    assert isinstance(dataset, OfflineDataset)
    # The second episode is cut: nothing is known of what came after its last step
    steps = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length - (e == 1))]
    rows = dataset.rows(np.arange(len(dataset)))
    shown, after = dataset.observations_at(rows), dataset.next_observations(rows)
    assert isinstance(shown, dict)
    assert isinstance(after, dict)
    np.testing.assert_array_equal(shown["state"], [(e, t, 10 * e + t) for e, t in steps])
    np.testing.assert_array_equal(after["state"][:, 1], [min(t + 1, LENGTHS[e] - 1) for e, t in steps])
    np.testing.assert_allclose(dataset.actions[rows], [(e - 1, t / 8) for e, t in steps], atol=1e-6)
    np.testing.assert_array_equal(dataset.rewards[rows], [t / 2 for _, t in steps])
    np.testing.assert_array_equal(dataset.masks[rows] == 0, [e != 1 and t == LENGTHS[e] - 1 for e, t in steps])
    np.testing.assert_array_equal(dataset.ends[rows], [t == LENGTHS[e] - 1 - (e == 1) for e, t in steps])
    drawn = np.empty((len(steps), 3, 32, 48), np.uint8)
    drawn[:, 0] = np.array([60 * e + 40 for e, _ in steps])[:, None, None]
    drawn[:, 1] = np.array([30 * t + 20 for _, t in steps])[:, None, None]
    drawn[:, 2] = np.arange(48)
    np.testing.assert_array_equal(shown["wrist"], 255 - drawn)
    # A video is compressed, but 30 lie between two steps and 60 between two episodes
    assert np.abs(shown["top"].astype(int) - drawn).max() < 15
    assert np.abs(after["top"].astype(int).mean((2, 3))[:, 1] - 30 * after["state"][:, 1] - 20).max() < 5


def test_a_model_learns_from_what_lerobot_recorded(recorded: Path) -> None:
    larger = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    env = RandomEnv(spaces.Dict({"state": STATE, "top": larger, "wrist": larger}), action_space=ACTIONS)
    model = make_any("flow_t", env, policy="MultiInputPolicy", offline_dataset=recorded, offline_steps=3)
    model.learn(3)
    assert model._n_updates == 3


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), files=st.integers(1, 3), data=st.data())
def test_steps_are_those_of_the_episodes_in_whatever_order_the_files_are(
    lengths: list[int], files: int, data: st.DataObject
) -> None:
    columns = random_columns(lengths)
    flags = data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    columns["next.success"] = success = np.array(flags)
    wanted: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "masks", "ends", "after")
    }
    start = 0
    for length in lengths:
        steps = length if success[start + length - 1] else length - 1
        for t in range(start, start + steps):
            wanted["observations"].append(columns["observation.state"][t])
            wanted["actions"].append(columns["action"][t])
            wanted["rewards"].append(columns["next.reward"][t])
            wanted["masks"].append(not success[t])
            wanted["ends"].append(t == start + steps - 1)
            wanted["after"].append(columns["observation.state"][min(t + 1, start + length - 1)])
        start += length
    with tempfile.TemporaryDirectory() as folder:
        path = write_lerobot(Path(folder) / "data", columns, lengths, files)
        if not wanted["actions"]:
            with pytest.raises(DataError, match="it has no steps"):
                load_lerobot(path)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # all of them terminal
            found = steps_of(load_lerobot(path))
    found["after"] = found.pop("next_observations")
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize(
    "given_columns", ["done", "done, truncated", "success, done", "success, done, truncated", "reward"]
)
def test_what_is_terminal_is_success_or_else_what_is_done_and_not_truncated(tmp_path: Path, given_columns: str) -> None:
    columns = random_columns([3, 4, 2])
    marks = {
        "done": np.array([0, 0, 1, 0, 0, 0, 1, 0, 1], bool),
        "truncated": np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], bool),
        "success": np.array([0, 0, 1, 0, 0, 0, 0, 0, 0], bool),
        "reward": columns.pop("next.reward"),
    }
    del columns["next.success"]
    for name in given_columns.split(", "):
        columns[f"next.{name}"] = marks[name]
    path = write_lerobot(tmp_path / "data", columns, [3, 4, 2])
    dataset = load_lerobot(path) if given_columns == "done" else quietly(path)
    terminal = {
        "done": [2, 6, 8],
        "done, truncated": [2, 8],
        "success, done": [2],
        "success, done, truncated": [2, 8],  # the last episode ends in failure
        "reward": [],
    }[given_columns]
    steps = [t for t in range(9) if t in terminal or t not in (2, 6, 8)]
    rows = dataset.rows(np.arange(len(dataset)))
    np.testing.assert_array_equal(dataset.masks[rows] == 0, [t in terminal for t in steps])
    np.testing.assert_array_equal(dataset.observations[rows], columns["observation.state"][steps])
    rewards = marks["reward"] if given_columns == "reward" else np.full(9, -1.0)
    np.testing.assert_array_equal(dataset.rewards[rows], rewards[steps])


def test_time_limits_that_look_like_ends_are_pointed_out(tmp_path: Path) -> None:
    columns = random_columns([3, 3])
    del columns["next.success"]
    columns["next.reward"] = np.float32([0, 0, 1, 0, 0, 0])
    columns["next.done"] = np.array([0, 0, 1, 0, 0, 1], bool)
    path = write_lerobot(tmp_path / "data", columns, [3, 3])
    (message,) = warned(lambda: load_lerobot(path))
    assert "next.done marks 2 ends, 1 of them with a reward" in message
    assert len(load_lerobot(path)) == 6
    steps = steps_of(quietly(path, terminal="next.reward"))
    np.testing.assert_array_equal(steps["masks"], [1, 1, 0, 1, 1])
    with pytest.raises(DataError, match=r"'next\.failure': it is missing"):
        load_lerobot(path, terminal="next.failure")
    with pytest.raises(ValueError, match=r"terminal='next\.reward' .*demonstrations=True says already"):
        load_lerobot(path, terminal="next.reward", demonstrations=True)


def test_demonstrations_that_were_recorded_as_failures_are_pointed_out(recorded: Path) -> None:
    load = partial(load_lerobot, recorded, ROBOT, ACTIONS, demonstrations=True)
    (message,) = warned(load)
    assert "1 episodes, 1 the first, were recorded without next.success" in message
    assert warned(lambda: load(episodes=[0, 2])) == []


def test_ends_without_any_word_on_success_are_pointed_out(tmp_path: Path) -> None:
    columns = random_columns([3, 3])
    del columns["next.success"], columns["next.reward"]
    columns["next.done"] = np.array([0, 0, 1, 0, 0, 1], bool)
    path = write_lerobot(tmp_path / "data", columns, [3, 3])
    (message,) = warned(lambda: load_lerobot(path))
    assert "next.done marks the end of every episode, and there is no next.reward" in message
    assert len(quietly(path, demonstrations=True)) == 6


def test_time_limits_alone_are_no_successes(tmp_path: Path) -> None:
    columns = random_columns([3, 3])
    del columns["next.success"], columns["next.reward"]
    columns["next.truncated"] = np.array([0, 0, 1, 0, 0, 1], bool)
    with pytest.raises(DataError, match="nothing says what the task is"):
        load_lerobot(write_lerobot(tmp_path / "data", columns, [3, 3]))


def test_rewards_that_are_left_out_with_the_last_steps_are_pointed_out(tmp_path: Path) -> None:
    columns = random_columns([3, 3])
    del columns["next.success"]
    columns["next.reward"] = np.float32([0, 0, 1, 0, 0, 0])
    path = write_lerobot(tmp_path / "data", columns, [3, 3])
    (message,) = warned(lambda: load_lerobot(path))
    assert "next.reward is 0 but at last steps of episodes, which are left out" in message
    steps = steps_of(quietly(path, terminal="next.reward"))
    np.testing.assert_array_equal(steps["rewards"], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(steps["masks"], [1, 1, 0, 1, 1])


def test_episodes_are_chosen_by_their_numbers_and_several_tasks_are_pointed_out(recorded: Path, tmp_path: Path) -> None:
    columns = random_columns([3, 4, 2])
    columns["task_index"] = np.repeat([0, 1, 0], [3, 4, 2])
    path = write_lerobot(tmp_path / "data", columns, [3, 4, 2])
    assert any("its episodes are of 2 tasks" in line for line in warned(lambda: load_lerobot(path)))
    some = steps_of(quietly(path, episodes=[2, 0]))
    np.testing.assert_array_equal(some["observations"], columns["observation.state"][[0, 1, 2, 7, 8]])
    whole = load_lerobot(recorded, ROBOT, ACTIONS)
    part = load_lerobot(recorded, ROBOT, ACTIONS, episodes=[1, 2])
    for key, values in part.observations_at(part.rows(np.arange(len(part)))).items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(values, whole.observations_at(whole.rows(np.arange(5, 17)))[key], err_msg=key)
    assert len(quietly(path, episodes={2, 0})) == len(some["rewards"])
    for episodes in ([], [3], [-1]):
        with pytest.raises(ValueError, match=r"episodes=.*some of 0 to 2"):
            load_lerobot(path, episodes=episodes)


def test_episodes_without_rewards_are_demonstrations_and_it_is_said(tmp_path: Path) -> None:
    columns = random_columns([3, 4])
    rewarded = write_lerobot(tmp_path / "rewarded", columns, [3, 4])
    del columns["next.reward"], columns["next.success"]
    bare = write_lerobot(tmp_path / "bare", columns, [3, 4])
    assert any("all its episodes are taken as demonstrations" in line for line in warned(lambda: load_lerobot(bare)))
    for path in (bare, rewarded):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if path == rewarded else "error")  # an episode failed
            steps = steps_of(load_lerobot(path, demonstrations=True))
        np.testing.assert_array_equal(steps["rewards"], np.full(7, -1.0))
        np.testing.assert_array_equal(np.flatnonzero(steps["masks"] == 0), [2, 6])
        np.testing.assert_array_equal(np.flatnonzero(steps["ends"]), [2, 6])
    with pytest.raises(DataError, match="nothing says what the task is"):
        load_lerobot(bare, demonstrations=False)


def test_actions_are_scaled_by_the_bounds_of_the_environment(tmp_path: Path) -> None:
    columns = random_columns([3])
    columns["action"] = np.float32([[-2, 0], [1, 10], [-0.5, 5]])
    path = write_lerobot(tmp_path / "data", columns, [3])
    space = spaces.Box(np.float32([-2, 0]), np.float32([1, 10]))
    np.testing.assert_allclose(steps_of(quietly(path, action_space=space))["actions"], [[-1, -1], [1, 1], [0, 0]])
    with pytest.raises(DataError, match=r"load_dataset\(\.\.\., env\.observation_space, env\.action_space\)"):
        load_lerobot(path)
    narrow = spaces.Box(np.float32([-2, 0]), np.float32([1, 8]))
    with pytest.raises(DataError, match=r"'action' row 1: .*outside of the environment's space, Box"):
        load_lerobot(path, action_space=narrow)
    half = spaces.Box(-0.5, 0.5, (2,), np.float32)
    columns["action"] = np.float32([[-0.1, 0], [0.1, 0.1], [0, 0]])
    narrow_path = write_lerobot(tmp_path / "narrow", columns, [3])
    assert warned(partial(load_fitting, narrow_path, STATE, half, 1)) == []
    with pytest.raises(DataError, match="one has 2 numbers, but the environment takes"):
        load_lerobot(path, action_space=spaces.Box(-1, 1, (3,)))
    for other in (spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0.0, 0.0, (2,))):
        with pytest.raises(
            DataError, match=r"'action_space': it is (Discrete|Box).*(generates numbers|cannot be scaled)"
        ):
            load_lerobot(path, action_space=other)
    edit_info(path, lambda info: info["features"].pop("action"))
    with pytest.raises(DataError, match="'action': it is missing"):
        load_lerobot(path)


def test_actions_may_be_called_otherwise(tmp_path: Path) -> None:
    columns = random_columns([3])
    columns["actions"] = columns.pop("action")
    dataset = quietly(write_lerobot(tmp_path / "data", columns, [3]), action_key="actions")
    np.testing.assert_array_equal(steps_of(dataset)["actions"], columns["actions"])


@pytest.mark.parametrize("keys", [None, {"pixels": "observation.images.top", "agent_pos": ["observation.state"]}])
def test_observations_are_found_by_their_names_or_named(keys: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(RECORDED / "v3.0", tmp_path / "data")
    if keys is None:  # as the datasets of LeRobot's own environments call it
        rename(folder, "observation.images.top", "observation.image")
    space = spaces.Dict({"agent_pos": STATE, "pixels": PICTURE})
    dataset = load_lerobot(folder, space, ACTIONS, keys)
    assert dataset.observation_shape == {"agent_pos": (3,), "pixels": (3, 32, 48)}


def rename(folder: Path, old: str, new: str) -> None:
    """Call a camera otherwise."""
    from pyarrow import parquet

    edit_info(folder, lambda info: info["features"].update({new: info["features"].pop(old)}))
    (folder / "videos" / old).rename(folder / "videos" / new)
    for path in (folder / "meta" / "episodes").rglob("*.parquet"):
        table = parquet.read_table(path)
        parquet.write_table(table.rename_columns([name.replace(old, new) for name in table.column_names]), path)


def test_what_is_no_vector_of_its_own_is_not_joined(tmp_path: Path) -> None:
    columns: dict[str, Any] = random_columns([4])
    columns["observation.state.gripper"] = columns["observation.state"][:, 2:]
    columns["observation.instruction"] = ["go"] * 4
    path = write_lerobot(tmp_path / "data", columns, [4])
    edit_info(path, lambda info: info["features"]["observation.instruction"].update(dtype="string"))
    np.testing.assert_array_equal(steps_of(quietly(path))["observations"], columns["observation.state"])
    with pytest.raises(DataError, match=r"'observation\.instruction': it holds string, not numbers"):
        load_lerobot(path, observation_keys="observation.instruction")


def test_matrices_keep_their_shape(tmp_path: Path) -> None:
    columns: dict[str, Any] = random_columns([4])
    columns["observation.grid"] = [row.tolist() for row in np.arange(24.0).reshape(4, 2, 3)]
    path = write_lerobot(tmp_path / "data", columns, [4])
    space = spaces.Dict({"grid": spaces.Box(-np.inf, np.inf, (2, 3))})
    dataset = load_lerobot(path, space)
    assert dataset.observation_shape == {"grid": (2, 3)}


def test_vectors_are_joined_in_their_order(tmp_path: Path) -> None:
    columns = random_columns([4])
    columns["observation.environment_state"] = columns["observation.state"][:, :2] + 1
    path = write_lerobot(tmp_path / "data", columns, [4])
    both = np.hstack([columns["observation.state"], columns["observation.environment_state"]])
    np.testing.assert_array_equal(steps_of(quietly(path))["observations"], both)
    turned = ["observation.environment_state", "observation.state"]
    np.testing.assert_array_equal(
        steps_of(quietly(path, observation_keys=turned))["observations"], np.roll(both, 2, axis=1)
    )


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_pictures_are_brought_to_the_size_that_the_environment_shows(recorded: Path, camera: str) -> None:
    keys = [f"observation.images.{camera}"]
    whole = load_lerobot(recorded, PICTURE, ACTIONS, keys).observations
    assert isinstance(whole, np.ndarray)
    half = load_lerobot(recorded, spaces.Box(0, 255, (3, 16, 24), np.uint8), ACTIONS, keys).observations
    areas = whole.reshape(len(whole), 3, 16, 2, 24, 2).astype(float).mean(axis=(3, 5))
    assert np.abs(half - areas).max() < 5
    grey = load_lerobot(recorded, spaces.Box(0, 255, (32, 48, 1), np.uint8), ACTIONS, keys).observations
    luma = np.tensordot([0.299, 0.587, 0.114], whole.astype(float), (0, 1))
    assert isinstance(grey, np.ndarray)
    assert grey.shape == (len(whole), 1, 32, 48)
    assert np.abs(grey[:, 0] - luma).max() < 12
    assert load_lerobot(recorded, None, ACTIONS, keys).observation_shape == (3, 32, 48)
    with pytest.raises(DataError, match="1 or 3 channels"):
        load_lerobot(recorded, spaces.Box(0, 255, (32, 48, 2), np.uint8), ACTIONS, keys)


def as_png(picture: NDArray[np.uint8]) -> bytes:
    import av

    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = *picture.shape[:2], "rgb24"
    codec.time_base = Fraction(1, 10)
    packets = [*codec.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *codec.encode()]
    return b"".join(bytes(packet) for packet in packets)


def test_smaller_pictures_are_averages_and_frames_may_be_stored_in_any_order(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = shutil.copytree(RECORDED / "v3.0", tmp_path / "data")
    (file,) = (folder / "data").rglob("*.parquet")
    table = parquet.read_table(file)
    column = "observation.images.wrist"
    # Chequered: one of its pixels is black or as bright as says the number of its frame
    chequered = (np.indices((32, 48)).sum(axis=0) % 2).astype(np.uint8)[..., None].repeat(3, axis=2)
    pictures = [{"bytes": as_png(chequered * 10 * index), "path": None} for index in range(len(table))]
    table = table.set_column(table.column_names.index(column), column, pa.array(pictures))
    parquet.write_table(table.take(np.random.default_rng(0).permutation(len(table))), file)
    shown = load_lerobot(folder, spaces.Box(0, 255, (16, 24, 3), np.uint8), ACTIONS, [column])
    rows = shown.rows(np.arange(len(shown)))
    numbers = [index for index in range(len(table)) if index != 11]  # the last of the episode that is cut
    assert isinstance(shown.observations, np.ndarray)
    wanted = np.array(numbers)[:, None, None, None] * 5.0
    assert np.abs(shown.observations[rows] - wanted).max() <= 1


def test_smaller_pictures_of_videos_keep_their_colours(tmp_path: Path) -> None:
    import av

    folder = shutil.copytree(RECORDED / "v2.1", tmp_path / "data")
    blocks = np.random.default_rng(0).integers(64, 192, (48, 64, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    for path in folder.rglob("*.mp4"):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = *blocks.shape[:2], "yuv420p"
            for _ in range(max(LENGTHS)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks, format="rgb24")))
            container.mux(stream.encode())
    keys = ["observation.images.top"]
    whole = load_lerobot(folder, None, ACTIONS, keys).observations
    assert isinstance(whole, np.ndarray)
    smaller = load_lerobot(folder, spaces.Box(0, 255, (3, 120, 160), np.uint8), ACTIONS, keys).observations
    averages = whole[0].reshape(3, 120, 4, 160, 4).astype(float).mean(axis=(2, 4))
    assert np.abs(smaller[0] - averages).mean() < 3  # 7 with colours of half the resolution


def test_images_may_be_files_beside_the_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = shutil.copytree(RECORDED / "v3.0", tmp_path / "data")
    column, keys = "observation.images.wrist", ["observation.images.wrist"]
    wanted = load_lerobot(folder, PICTURE, ACTIONS, keys).observations
    (file,) = (folder / "data").rglob("*.parquet")
    table = parquet.read_table(file)
    places = []
    for index, stored in enumerate(table.column(column).to_pylist()):
        places.append({"bytes": None, "path": f"{index}.png"})
        (folder / f"{index}.png").write_bytes(stored["bytes"])
    parquet.write_table(table.set_column(table.column_names.index(column), column, pa.array(places)), file)
    np.testing.assert_array_equal(load_lerobot(folder, PICTURE, ACTIONS, keys).observations, wanted)
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match=r"'observation.images.wrist': cannot be read .*3\.png"):
        load_lerobot(folder, PICTURE, ACTIONS, keys)


def test_pictures_are_those_of_the_recorded_times(tmp_path: Path) -> None:
    from pyarrow import parquet

    folder = shutil.copytree(RECORDED / "v2.1", tmp_path / "data")
    # The first two frames of an episode were cut off, but not from its video
    file = sorted(folder.rglob("*.parquet"))[1]
    table = parquet.read_table(file).slice(2)
    frames = table.column("frame_index")
    table = table.set_column(table.column_names.index("frame_index"), "frame_index", [list(range(len(frames)))])
    parquet.write_table(table, file)
    edit_info(folder, lambda info: info.update(total_frames=sum(LENGTHS) - 2))
    seen = load_lerobot(folder, ROBOT, ACTIONS, episodes=[1]).observations
    assert isinstance(seen, dict)
    assert np.abs(seen["top"].astype(float).mean((2, 3))[:, 1] - 30 * seen["state"][:, 1] - 20).max() < 5


def test_two_cameras_stand_above_each_other_in_the_channels(recorded: Path) -> None:
    keys = ["observation.images.wrist", "observation.images.top"]
    both = load_lerobot(recorded, spaces.Box(0, 255, (6, 32, 48), np.uint8), ACTIONS, keys).observations
    assert isinstance(both, np.ndarray)
    for key, part in zip(keys, (both[:, :3], both[:, 3:]), strict=True):
        np.testing.assert_array_equal(part, load_lerobot(recorded, PICTURE, ACTIONS, [key]).observations)
    with pytest.raises(DataError, match="of 2 cameras 3 channels are wanted"):
        load_lerobot(recorded, PICTURE, ACTIONS, keys)


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "frames": (lambda info: info.update(total_frames=8), "'total_frames': it is 8, but there are 7; is the dataset"),
    "episodes": (lambda info: info.update(total_episodes=3), "'total_episodes': it is 3, but there are 2"),
    "version": (lambda info: info.update(codebase_version="v1.6"), "it is v1.6; formats 2 and 3 can be read"),
    "no features": (lambda info: info["features"].update(action="float"), "cannot be read"),
    "no fps": (lambda info: info.pop("fps"), "cannot be read"),
    "no action": (lambda info: info["features"].pop("action"), "'action': it is missing; there are episode_index"),
    "not stored": (lambda info: info["features"].update({"observation.arm": {"dtype": "float32"}}), "observation.arm"),
    "depth": (
        lambda info: info["features"].update(
            {"observation.state": {"dtype": "video", "info": {"video.is_depth_map": True}}}
        ),
        "it holds depths",
    ),
    "depth, as it was said before": (
        lambda info: info["features"].update(
            {"observation.state": {"dtype": "image", "info": None, "video_info": {"video.is_depth_map": True}}}
        ),
        "it holds depths",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_metadata_that_do_not_say_what_is_there_are_refused(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    path = write_lerobot(tmp_path / "data", random_columns([3, 4]), [3, 4])
    edit_info(path, change)
    keys = ["observation.state"] if case.startswith("depth") else None
    with pytest.raises(DataError, match=message):
        load_lerobot(path, observation_keys=keys)


def ragged(columns: dict[str, Any]) -> None:
    columns["observation.state"] = [row[: 2 + (i == 3)] for i, row in enumerate(columns["observation.state"])]


BAD_COLUMNS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "ragged": (ragged, "'observation.state': its rows have 2 and 3 numbers"),
    "nan": (lambda columns: columns["action"].__setitem__((2, 0), np.nan), "'action' row 2: it is NaN or infinite"),
    "null": (lambda columns: columns.update({"next.reward": [1.0, None] * 3}), "numbers are missing from it"),
    "text": (lambda columns: columns.update({"next.reward": ["good"] * 6}), "'next.reward': it holds"),
    "vector": (lambda columns: columns.update({"next.reward": columns["action"]}), r"shape \(6, 2\), not \(6,\)"),
    "not a flag": (lambda columns: columns.update({"next.success": np.arange(6)}), "it is 2, not 0 or 1"),
    "no rewards, no success": (
        lambda columns: (columns.pop("next.reward"), columns["next.success"].fill(False)),
        "'next.success': no step has it, .* demonstrations=True",
    ),
    "no observations": (lambda columns: columns.pop("observation.state"), "there are none; say what is seen"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns_are_refused_by_name_and_row(tmp_path: Path, case: str) -> None:
    change, message = BAD_COLUMNS[case]
    columns = random_columns([3, 3])
    change(columns)
    with pytest.raises(DataError, match=message):
        load_lerobot(write_lerobot(tmp_path / "data", columns, [3, 3]))


def test_a_frame_that_is_missing_is_named(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = write_lerobot(tmp_path / "data", random_columns([4, 4]), [4, 4])
    (file,) = (path / "data").rglob("*.parquet")
    parquet.write_table(parquet.read_table(file).take([0, 1, 2, 3, 4, 6, 7]), file)
    edit_info(path, lambda info: info.pop("total_frames"))
    with pytest.raises(DataError, match="'frame_index': frame 1 of episode 1 is missing"):
        load_lerobot(path)
    shutil.rmtree(path / "data")
    with pytest.raises(DataError, match=r"there are no \.parquet files; is the dataset complete"):
        load_lerobot(path)


def test_unclear_observations_are_refused_with_what_to_say(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shows 'gripper', but there are observation\.state, .*observation_keys="):
        load_lerobot(recorded, spaces.Dict({"gripper": STATE}), ACTIONS)
    with pytest.raises(DataError, match="say what is seen"):
        load_lerobot(recorded, PICTURE, ACTIONS)
    with pytest.raises(DataError, match="some are pictures; give a dict"):
        load_lerobot(recorded, None, ACTIONS, ["observation.state", "observation.images.top"])
    with pytest.raises(DataError, match=r"'observation.arm': it is missing"):
        load_lerobot(recorded, None, ACTIONS, "observation.arm")
    with pytest.raises(ValueError, match="observation_keys"):
        load_lerobot(recorded, None, ACTIONS, [])


@pytest.mark.parametrize("lacking", ["chunk_index", "from_timestamp", "episode", "video_path"])
def test_a_video_of_which_is_not_said_where_it_is_is_refused(tmp_path: Path, lacking: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = shutil.copytree(RECORDED / "v3.0", tmp_path / "data")
    (file,) = (folder / "meta" / "episodes").rglob("*.parquet")
    table = parquet.read_table(file)
    column = f"videos/observation.images.top/{lacking}"
    if lacking == "video_path":
        edit_info(folder, lambda info: info.update(video_path="videos/{camera}.mp4"))
    elif lacking == "episode":
        parquet.write_table(table.slice(1), file)
    else:
        place, kind = table.column_names.index(column), table.column(column).type
        parquet.write_table(table.set_column(place, column, pa.nulls(len(table), kind)), file)
    with pytest.raises(
        DataError, match=r"observation\.images\.top': (it does not say where episode 0 is|cannot be read)"
    ):
        load_lerobot(folder, PICTURE, ACTIONS, ["observation.images.top"])


def test_a_video_that_is_missing_or_cut_is_named(recorded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(recorded, tmp_path / "data")
    video = sorted(folder.rglob("*.mp4"))[-1]
    keys = ["observation.images.top"]
    video.write_bytes(video.read_bytes()[:600])
    with pytest.raises(DataError, match=r"\.mp4: .*is it complete"):
        load_lerobot(folder, PICTURE, ACTIONS, keys)
    video.unlink()
    with pytest.raises(DataError, match=r"\.mp4: it is missing"):
        load_lerobot(folder, PICTURE, ACTIONS, keys)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["info.json", "*.mp4", "data/*/*.parquet", "meta/*/*/*.parquet"])
def test_damaged_files_never_crash_or_hang(recorded: Path, tmp_path: Path, pattern: str) -> None:
    folder = shutil.copytree(recorded, tmp_path / "data")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.match(pattern)]
    if not files:
        pytest.skip("v2.1 has none")
    data, right = files[0].read_bytes(), load_lerobot(folder, ROBOT, ACTIONS)
    refused: list[str] = []
    for seed in range(100):
        files[0].write_bytes(damage(data, np.random.default_rng(seed)))
        try:
            with time_limit(5):
                read = load_lerobot(folder, ROBOT, ACTIONS)
        except DataError as error:
            refused.append(str(error))
        else:  # without checksums a changed digit is another number; all else is noticed
            np.testing.assert_array_equal(read.ends, right.ends)
            assert read.observation_shape == right.observation_shape
            assert np.isfinite(read.rewards).all()
    assert len(refused) > 50
    assert [message for message in refused if str(folder) not in message] == []


def test_a_dataset_of_the_hub_is_looked_for_where_lerobot_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def no_network(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"LeRobot's me/mine was not found; .*no network.* hf download"):
        load_dataset("lerobot:me/mine")
    path = write_lerobot(tmp_path / "me" / "mine", random_columns([3]), [3])
    assert len(load_dataset("lerobot:me/mine")) == 3
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, repo_type: str(tmp_path / "me" / name[3:]))
    assert find_lerobot("me/mine") == path
    shutil.rmtree(tmp_path / "me")
    hub = tmp_path / "hub" / "datasets--me--mine" / "snapshots" / "abc"
    write_lerobot(hub, random_columns([3, 1]), [3, 1])
    assert find_lerobot("me/mine") == hub
    with pytest.raises(ValueError, match="lerobot:<user>/<name>"):
        load_dataset("lerobot:")
    with pytest.raises(FileNotFoundError, match="meta"):
        load_lerobot(tmp_path / "elsewhere")
    for inside in ("data", "meta/info.json"):
        with pytest.raises(ValueError, match=r"of LeRobot's dataset give '.*abc'"):
            load_dataset(hub / inside)
    np.savez(hub / "converted.npz", **regular_arrays(trajectories([4])))
    assert len(load_dataset(hub / "converted.npz")) == 4
    monkeypatch.chdir(tmp_path)
    write_lerobot(tmp_path / "local", random_columns([3]), [3])
    assert len(load_dataset("lerobot:local")) == 3
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "elsewhere")):
        load_dataset("elsewhere")


@pytest.mark.parametrize("module", ["pyarrow", "av"])
def test_what_is_not_installed_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"need {module}: pip install .*lerobot"):
        load_lerobot(RECORDED / "v3.0", PICTURE, ACTIONS, ["observation.images.top"])
