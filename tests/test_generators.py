"""Generated data: in the official form, the same whatever was interrupted, and true to the environments."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from dataset_files import steps_of
from numpy.typing import NDArray
from parts import make_parts
from scipy import stats

from sb3_flow.datasets import OfflineDataset, ShardedDataset, load_dataset, read_env_args

h5py = pytest.importorskip("h5py")
pytest.importorskip("robosuite")
generate_ogbench = pytest.importorskip("generate_ogbench")
generate_robomimic = pytest.importorskip("generate_robomimic")

STEPS = 20  # of an episode
TASK = "cube-single-play-singletask-task1-v0"
Files = dict[str, NDArray[Any]]


@pytest.fixture(scope="module", autouse=True)
def _small_parts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_ogbench, "PART_EPISODES", 2)
        patch.setattr(generate_robomimic, "PART_DEMOS", 2)
        yield


def run(script: Any, *args: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, args)])
        script.main()


def ogbench_data(out: Path, env: str = "cube-single-play-v0", episodes: int = 3, seed: int = 0) -> Files:
    options = ("--steps", episodes * STEPS, "--episode-steps", STEPS, "--shard-steps", 2 * STEPS)
    run(generate_ogbench, "--env", env, "--out", out, "--seed", seed, *options)
    return npz(out) if out.suffix == ".npz" else {}


def npz(path: Path) -> Files:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def lift_data(out: Path, *options: Any) -> Files:
    run(generate_robomimic, "--task", "lift", "--demos", 3, "--out", out, *options)
    return hdf5(out)


def hdf5(path: Path) -> Files:
    found: Files = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same(a: Files, b: Files) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ogbench") / "cube.npz"
    ogbench_data(path)
    return path


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("robomimic") / "lift.hdf5"
    lift_data(path)
    return path


def test_play_data_have_the_published_form_and_load(cube: Path) -> None:
    arrays = npz(cube)
    widths = {"observations": 28, "actions": 5, "qpos": 21, "qvel": 20}
    assert {key: (array.dtype, array.shape) for key, array in arrays.items()} == {
        **{key: (np.float32, (63, width)) for key, width in widths.items()},
        "terminals": (np.bool_, (63,)),
    }
    np.testing.assert_array_equal(np.flatnonzero(arrays["terminals"]), [20, 41, 62])
    assert np.abs(arrays["actions"]).max() <= 1
    dataset = load_dataset(f"ogbench:{TASK}@{cube}")
    assert isinstance(dataset, OfflineDataset)
    assert (len(dataset), dataset.n_episodes) == (60, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["play", "noisy"])
def test_the_scene_has_buttons_and_targets_of_every_kind(tmp_path: Path, kind: str) -> None:
    arrays = ogbench_data(tmp_path / "scene.npz", f"scene-{kind}-v0", episodes=1)
    assert (arrays["button_states"].dtype, arrays["button_states"].shape) == (np.int64, (21, 2))
    load_dataset(f"ogbench:scene-play-singletask-task1-v0@{tmp_path / 'scene.npz'}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["play", "noisy"])
def test_puzzles_are_played_by_pressing_buttons(tmp_path: Path, kind: str) -> None:
    arrays = ogbench_data(tmp_path / "puzzle.npz", f"puzzle-3x3-{kind}-v0", episodes=1)
    assert (arrays["button_states"].dtype, arrays["button_states"].shape) == (np.int64, (21, 9))
    load_dataset(f"ogbench:puzzle-3x3-sparse-play-singletask-task1-v0@{tmp_path / 'puzzle.npz'}")


@pytest.mark.slow
def test_some_of_the_noisy_actions_are_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def actions(kind: str, share: float) -> NDArray[Any]:
        monkeypatch.setitem(generate_ogbench.RANDOM_ACTIONS, "cube", share)
        return ogbench_data(tmp_path / f"{kind}{share}.npz", f"cube-single-{kind}-v0", episodes=4)["actions"]

    assert stats.kstest(actions("noisy", 1.0).ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(actions("noisy", 0.1).ravel(), stats.uniform(-1, 2).cdf).pvalue < 1e-6
    np.testing.assert_array_equal(actions("play", 1.0), actions("play", 0.1))


@pytest.mark.slow
def test_a_directory_gets_shards_that_load_in_turns(tmp_path: Path) -> None:
    ogbench_data(tmp_path / "shards")
    dataset = load_dataset(f"ogbench:{TASK}@{tmp_path / 'shards'}")
    assert isinstance(dataset, ShardedDataset)
    assert [path.name for path in dataset.paths] == ["0000.npz", "0001.npz"]
    assert len(dataset) == 4 * STEPS  # whole shards


def test_other_seeds_make_other_data_and_every_episode_is_its_own(cube: Path, tmp_path: Path) -> None:
    first, other = npz(cube), ogbench_data(tmp_path / "other.npz", episodes=2, seed=1)
    starts = np.concatenate([data["observations"][:: STEPS + 1] for data in (first, other)])
    assert len(np.unique(starts, axis=0)) == 5


def test_interruptions_do_not_change_play_data(cube: Path) -> None:
    wanted = npz(cube)
    parts = cube.with_name("cube.npz.parts")
    kept = (parts / "0000.npz").stat().st_mtime_ns
    (parts / "0001.npz").unlink()
    (parts / "0001.npz.unfinished").write_bytes(b"half")
    assert_same(ogbench_data(cube), wanted)
    assert (parts / "0000.npz").stat().st_mtime_ns == kept


def test_parts_made_otherwise_are_not_mixed_in(cube: Path) -> None:
    with pytest.raises(SystemExit, match=r"'seed': 0.*'seed': 1.*another output"):
        ogbench_data(cube, seed=1)


def test_processes_make_what_is_missing_and_say_what_failed(tmp_path: Path) -> None:
    paths = [tmp_path / "parts" / f"{i}.npz" for i in range(4)]
    paths[0].parent.mkdir()
    paths[2].write_bytes(b"made before")
    make_parts(paths, 10, {"seed": 0}, Path.touch, jobs=2)
    assert [path.read_bytes() for path in paths] == [b"", b"", b"made before", b""]
    with pytest.raises(FileNotFoundError):
        make_parts([tmp_path / "parts" / "4.npz"], 10, {"seed": 0}, Path.unlink, jobs=2)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (generate_ogbench, ("--env", "cube-octuple-play-v0"), "'cube-octuple-play-v0' is not allowed: write it like"),
        (generate_ogbench, ("--jobs", "0"), "'0' is no whole number from 1 on"),
        (generate_robomimic, ("--task", "square"), "invalid choice: 'square' (choose from 'lift', 'can')"),
    ],
)
def test_bad_arguments_are_refused(
    module: ModuleType, arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(module, *arguments, "--out", tmp_path / "x")
    assert said in capsys.readouterr().err


def test_play_observations_are_the_environments_at_the_rows_state(cube: Path) -> None:
    arrays = npz(cube)
    env: Any = gym.make(TASK)
    env.reset(seed=0)
    simulation = env.unwrapped.simulation
    contact = 18  # a force of the last step, which is no part of the state
    kept = np.arange(28) != contact
    for row in range(0, 63, 4):
        simulation.set_state(arrays["qpos"][row].astype(np.float64), arrays["qvel"][row].astype(np.float64))
        shown = simulation.compute_observation().astype(np.float32)
        # The gripper's pose is that of one physics step before, 2 ms, and is shown in tenths of a metre
        np.testing.assert_allclose(arrays["observations"][row][kept], shown[kept], atol=0.02)
        exact = np.r_[0:12, 19:26]  # joints and cube
        np.testing.assert_allclose(arrays["observations"][row][exact], shown[exact], atol=1e-5)
    env.close()


@pytest.mark.slow
def test_demonstrations_have_the_official_form_and_load(lift: Path) -> None:
    with h5py.File(lift) as file:
        data = file["data"]
        assert set(data) == {"demo_0", "demo_1", "demo_2"}
        assert data.attrs["total"] == sum(data[name].attrs["num_samples"] for name in data)
        assert json.loads(data.attrs["env_args"])["env_name"] == "Lift"
        for demo in data.values():
            steps = demo.attrs["num_samples"]
            assert demo.attrs["model_file"].startswith("<mujoco")
            np.testing.assert_array_equal(demo["dones"], np.arange(steps) == steps - 1)
            np.testing.assert_array_equal(demo["rewards"], demo["dones"])
            for key in demo["obs"]:
                np.testing.assert_array_equal(demo[f"next_obs/{key}"][:-1], demo[f"obs/{key}"][1:])
        filters = {key: [name.decode() for name in names] for key, names in file["mask"].items()}
    assert filters == {
        "better": ["demo_0"],
        "okay": ["demo_1"],
        "worse": ["demo_2"],
        "train": ["demo_1", "demo_2"],
        "valid": ["demo_0"],
    }
    assert read_env_args(lift)["env_kwargs"]["control_freq"] == 20
    dataset = load_dataset(f"robomimic:lift/mh@{lift}")
    assert isinstance(dataset, OfflineDataset)
    assert (dataset.n_episodes, dataset.observation_shape, dataset.action_dim) == (3, (19,), 7)
    assert steps_of(dataset)["masks"].sum() == len(dataset) - 3
    assert len(load_dataset(f"robomimic:lift/mh/better@{lift}")) < len(dataset)


@pytest.mark.slow
def test_demonstrations_replayed_show_the_same_and_succeed(lift: Path) -> None:
    env: Any = gym.make("lift-mh-low_dim-v0", env_args=lift)
    dataset: Any = load_dataset(f"robomimic:lift/mh/better@{lift}")
    with h5py.File(lift) as file:
        demo = file["data/demo_0"]
        shown = [env.reset(seed=int(demo.attrs["seed"]))[0]]
        for action in demo["actions"][()]:
            observation, _, terminated, _, _ = env.step(action)
            shown.append(observation)
        assert terminated
        np.testing.assert_allclose(shown, dataset.observations, atol=1e-4)
        for row in range(0, len(demo["states"]), 10):
            env.unwrapped.simulation.sim.set_state_from_flattened(demo["states"][row])
            np.testing.assert_allclose(env.unwrapped._observe(), dataset.observations[row], atol=1e-6)
    env.close()


@pytest.mark.slow
def test_interruptions_do_not_change_demonstrations(lift: Path) -> None:
    wanted = hdf5(lift)
    parts = lift.with_name("lift.hdf5.parts")
    kept = (parts / "0001.hdf5").stat().st_mtime_ns
    (parts / "0000.hdf5").unlink()
    assert_same(lift_data(lift), wanted)
    assert (parts / "0001.hdf5").stat().st_mtime_ns == kept


def test_failures_are_kept_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clumsy = generate_robomimic.Operator((0.0, 0.0), 0.0, 0.0, 0.0)
    monkeypatch.setattr(generate_robomimic, "OPERATORS", dict.fromkeys(generate_robomimic.OPERATORS, clumsy))
    monkeypatch.setattr(generate_robomimic, "PART_DEMOS", 1)
    monkeypatch.setattr(gym.spec("lift-mh-low_dim-v0"), "max_episode_steps", 20)
    out = tmp_path / "failed.hdf5"
    run(generate_robomimic, "--demos", 1, "--out", out, "--keep-failures")
    with h5py.File(out) as file:
        assert not file["data/demo_0/dones"][()].any()
        assert not file["data/demo_0"].attrs["success"]
