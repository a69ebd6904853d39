"""Data of Dict spaces: what an array of all their numbers would give, key by key."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import LAYOUTS, regular_arrays, steps_of, trajectories, write_minari
from gymnasium import spaces
from helpers import EVERY_KIND, ON_POLICY, VARIANTS, RandomEnv, make_any, make_variant, snapshot
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_flow import FQL
from sb3_flow.common.buffers import sample_dataset
from sb3_flow.common.checkpoints import CheckpointCallback
from sb3_flow.datasets import DataError, OfflineDataset, ShardedDataset, check_fits, from_arrays, load_dataset
from sb3_flow.datasets.load import load_fitting
from sb3_flow.datasets.minari import _channels_first, load_minari
from sb3_flow.datasets.ogbench import measure

# As in a Dict space, the keys are in the alphabet's order
LEAVES = {"arm": spaces.Box(-1, 1, (1,), np.float32), "cube": spaces.Box(-1, 1, (2,), np.float32)}
SPACE = spaces.Dict(LEAVES)
JOINED = spaces.Box(-1, 1, (3,), np.float32)
NAMES = ("observations", "next_observations")


def split(arrays: dict[str, Any], flat: bool = False) -> dict[str, Any]:
    """The arrays with their observations by key, in dicts or under names of their own."""
    parts = {name: {"arm": arrays[name][:, :1], "cube": arrays[name][:, 1:]} for name in NAMES if name in arrays}
    whole = {name: array for name, array in arrays.items() if name not in parts}
    if not flat:
        return whole | parts
    return whole | {f"{name}/{key}": part for name, dicts in parts.items() for key, part in dicts.items()}


def joined(observations: Any) -> Any:
    assert list(observations) == list(LEAVES)
    return np.hstack(list(observations.values()))


def assert_same_steps(dataset: Any, whole: Any) -> None:
    rows = dataset.rows(np.arange(len(dataset)))
    steps = steps_of(whole)
    np.testing.assert_array_equal(joined(dataset.observations_at(rows)), steps["observations"])
    np.testing.assert_array_equal(joined(dataset.next_observations(rows)), steps["next_observations"])
    for name in ("actions", "rewards", "masks", "ends"):
        np.testing.assert_array_equal(getattr(dataset, name)[rows], steps[name])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_has_the_parts_that_an_array_has(layout: str, save: Any, tmp_path: Path) -> None:
    arrays = LAYOUTS[layout](trajectories([4, 3, 5]))
    save(tmp_path / "dict.npz", **split(arrays, flat=True))
    np.savez(tmp_path / "whole.npz", **arrays)
    dataset, whole = load_dataset(tmp_path / "dict.npz"), load_dataset(tmp_path / "whole.npz")
    assert_same_steps(dataset, whole)
    assert dataset.observation_shape == {"arm": (1,), "cube": (2,)}
    check_fits(dataset, SPACE, spaces.Box(-1, 1, (2,), np.float32))
    assert measure(tmp_path / "dict.npz") == (len(whole), dataset.observation_shape, dataset.observation_dtype, 2)


@pytest.mark.parametrize("flat", [True, False])
def test_arrays_may_be_in_dicts_or_under_names_of_their_own(flat: bool) -> None:
    arrays = regular_arrays(trajectories([4, 3]))
    assert_same_steps(from_arrays(split(arrays, flat)), from_arrays(arrays))


def test_files_of_a_folder_take_turns(tmp_path: Path) -> None:
    for i, lengths in enumerate(([4, 3], [5])):
        np.savez(tmp_path / f"{i}.npz", **split(regular_arrays(trajectories(lengths, seed=i)), flat=True))
    with pytest.warns(UserWarning, match="take turns"):
        dataset = load_dataset(tmp_path)
    assert isinstance(dataset, ShardedDataset)
    assert (len(dataset), dataset.observation_shape) == (12, {"arm": (1,), "cube": (2,)})
    assert len(dataset.at(dataset.rotate_every)) == 5
    np.savez(tmp_path / "2.npz", **regular_arrays(trajectories([2])))
    with pytest.raises(DataError, match=r"2\.npz: its observation_shape is \(3,\)"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("horizon", [1, 3])
def test_batches_are_those_of_the_joined_array(horizon: int) -> None:
    arrays = regular_arrays(trajectories([6, 8]))
    batches = []
    for given in (arrays, split(arrays)):
        np.random.seed(0)
        batches.append(sample_dataset(from_arrays(given), 16, horizon, 0.9))
    whole, parts = batches
    for name in NAMES:
        th.testing.assert_close(th.hstack(list(getattr(parts, name).values())), getattr(whole, name), rtol=0, atol=0)
    th.testing.assert_close(parts.rewards, whole.rewards, rtol=0, atol=0)


def test_minaris_dicts_are_joined_or_kept_as_the_environment_shows_them(tmp_path: Path) -> None:
    h5py, minari = pytest.importorskip("h5py"), pytest.importorskip("minari")
    whole = load_minari(write_minari(tmp_path / "whole" / "data", [6, 9], low=-1.0))
    folder = write_minari(tmp_path / "dict" / "data", [6, 9], low=-1.0)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        for i in range(2):
            values = file[f"episode_{i}/observations"][:]
            del file[f"episode_{i}/observations"]
            file[f"episode_{i}/observations/arm"] = values[:, :1]
            file[f"episode_{i}/observations/cube"] = values[:, 1:]
    metadata = json.loads((folder / "metadata.json").read_text())
    parts = {key: spaces.Box(-np.inf, np.inf, leaf.shape, np.float64) for key, leaf in LEAVES.items()}
    metadata["observation_space"] = minari.serialization.serialize_space(spaces.Dict(parts))
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert_same_steps(load_minari(folder, as_dict=True), whole)
    np.testing.assert_array_equal(load_minari(folder).observations, whole.observations)
    for space, policy in ((SPACE, "MultiInputPolicy"), (JOINED, "FQLPolicy")):
        model = make_variant("fql", RandomEnv(space), policy=policy, offline_dataset=folder.parent, offline_steps=3)
        model.learn(3)
        assert model._n_updates == 3


def test_an_episode_that_goes_on_elsewhere_is_refused_by_key() -> None:
    arrays = split(regular_arrays(trajectories([6])))
    arrays["next_observations"]["cube"][2] += 1
    dataset = from_arrays(arrays)
    with pytest.raises(DataError, match=r"'next_observations/cube' row 2: they differ"):
        dataset.check_chunks(2)


def test_data_are_those_of_the_space() -> None:
    arrays = regular_arrays(trajectories([6]))
    dataset, action = from_arrays(split(arrays)), spaces.Box(-1, 1, (2,), np.float32)
    for space, message in (
        (JOINED, r"'observations': they are a dict of arm, cube, but the environment shows Box"),
        (spaces.Dict({"arm": LEAVES["arm"]}), r"'observations': they are a dict of arm, cube"),
        (spaces.Dict({**LEAVES, "arm": JOINED}), r"'observations/arm': one has shape \(1,\).*another environment"),
        (spaces.Dict({**LEAVES, "arm": spaces.Discrete(3)}), r"'observations/arm'.*Discrete\(3\); data are numbers"),
    ):
        with pytest.raises(DataError, match=message):
            check_fits(dataset, space, action)
    # Bytes that are no image are numbers, and so are bits
    check_fits(dataset, spaces.Dict({**LEAVES, "arm": spaces.Box(0, 255, (1,), np.uint8)}), action)
    bits = {**split(arrays), **{name: {"bits": np.ones((6, 3), np.uint8)} for name in NAMES}}
    check_fits(from_arrays(bits), spaces.Dict({"bits": spaces.MultiBinary(3)}), action)
    with pytest.raises(DataError, match=r"give a dict of arrays, with its keys; or gymnasium.*FlattenObservation"):
        check_fits(from_arrays(arrays), SPACE, action)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_what_is_learned_is_what_the_joined_array_teaches(name: str) -> None:
    arrays = regular_arrays(trajectories([20, 30]))
    known = {**VARIANTS, **ON_POLICY}[name]

    def learned(space: spaces.Space[Any], data: Any) -> dict[str, Any]:
        model = make_any(name, RandomEnv(space), policy="MultiInputPolicy" if space is SPACE else known.policy)
        if name in ON_POLICY:
            model.pretrain(data, 5)
        else:
            model.offline_dataset = data
            model.learn_offline(5)
        return model.policy.state_dict()

    whole, parts = learned(JOINED, arrays), learned(SPACE, split(arrays))
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        th.testing.assert_close(parts[key], value, rtol=0, atol=0)


IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)  # SB3 puts channels first


def with_images(steps: int) -> dict[str, Any]:
    arrays = regular_arrays(trajectories([steps // 2, steps - steps // 2]))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (steps + 1, 3, 36, 36)).astype(np.uint8)
    for name, shown in zip(NAMES, (images[:-1], images[1:]), strict=True):
        arrays[name] = {"camera": shown, "joints": arrays[name]}
    return arrays


@pytest.mark.parametrize("ratio", [None, 0.5])
@pytest.mark.parametrize("name", ["flow_t", "qc_fql", "flow_rl", "qsm", "dime"])
def test_images_and_vectors_are_learned_from_together_and_then_online(name: str, ratio: Any, tmp_path: Path) -> None:
    env = RandomEnv(spaces.Dict({"camera": IMAGE, "joints": JOINED}))
    data = with_images(40)
    arguments = {"offline_dataset": data, "offline_steps": 3, "learning_starts": 0}
    arguments |= {} if name == "dime" and ratio is None else {"offline_ratio": ratio}
    model = make_variant(name, env, policy="MultiInputPolicy", **arguments)
    model.learn(15)
    assert model.num_timesteps == 15
    assert model._n_updates > 10
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu", offline_dataset=data)
    assert snapshot(loaded).keys() == snapshot(model).keys()
    loaded.learn(3, reset_num_timesteps=False)


def test_the_statistics_are_those_of_the_data_by_key() -> None:
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(SPACE)]), norm_obs_keys=["cube"])
    arrays = regular_arrays(trajectories([300, 200]))
    model = make_variant("fql", env, policy="MultiInputPolicy", offline_dataset=split(arrays), offline_steps=2)
    model.learn(2)
    assert list(env.obs_rms) == ["cube"]
    # Beside one observation of the reset
    np.testing.assert_allclose(env.obs_rms["cube"].mean, arrays["observations"][:, 1:].mean(axis=0), atol=0.02)


def camera_robot() -> RandomEnv:
    return RandomEnv(spaces.Dict({"camera": IMAGE, "joints": JOINED}))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_with_vec_normalize_images_are_transposed_inside_of_it(name: str, tmp_path: Path) -> None:
    data, venv = with_images(40), DummyVecEnv([camera_robot])
    outside = VecNormalize(venv, norm_obs_keys=["joints"])
    if name in VARIANTS:
        with pytest.raises(
            ValueError, match=r"^env=.* put it inside, as VecNormalize\(VecTransposeImage\(env\), norm_o"
        ):
            make_any(name, outside, policy="MultiInputPolicy")
    env = VecNormalize(VecTransposeImage(venv), norm_obs_keys=["joints"])
    arguments = {} if name in ON_POLICY else {"offline_dataset": data, "offline_steps": 3, "learning_starts": 0}
    model = make_any(name, env, policy="MultiInputPolicy", **arguments)
    if name in ON_POLICY:
        model.pretrain(data, 3)
    model.learn(15, callback=CheckpointCallback(15, str(tmp_path)))
    # The plain environment is enough to go on
    resumed = type(model).resume(tmp_path, camera_robot(), **{k: v for k, v in arguments.items() if v is data})
    statistics = resumed.get_vec_normalize_env()
    assert statistics.observation_space["camera"].shape == (3, 36, 36)
    np.testing.assert_array_equal(statistics.obs_rms["joints"].mean, env.obs_rms["joints"].mean)
    resumed.learn(5, reset_num_timesteps=False)


def test_an_image_that_vec_normalize_changes_is_named() -> None:
    dataset, action = from_arrays(with_images(8)), spaces.Box(-1, 1, (2,), np.float32)
    shown = spaces.Dict({"camera": IMAGE, "joints": JOINED})
    check_fits(dataset, shown, action)  # as the environment shows it, or as the model does
    check_fits(dataset, spaces.Dict({"camera": spaces.Box(0, 255, (3, 36, 36), np.uint8), "joints": JOINED}), action)
    for shape in ((36, 36, 3), (3, 36, 36)):
        normalized = spaces.Box(-10, 10, shape, np.float32)
        with pytest.raises(DataError, match=r"'observations/camera'.*norm_obs_keys"):
            check_fits(dataset, spaces.Dict({"camera": normalized, "joints": JOINED}), action)
    last = {key: part if key == "joints" else part.transpose(0, 2, 3, 1) for key, part in dataset.observations.items()}
    arrays = {**with_images(8), "observations": last, "next_observations": last}
    with pytest.raises(DataError, match=r"'observations/camera'.*transpose them too"):
        check_fits(from_arrays(arrays), shown, action)


def test_a_model_that_only_plays_or_learns_from_data_may_have_its_images_transposed_outside(tmp_path: Path) -> None:
    data, env = with_images(40), VecNormalize(DummyVecEnv([camera_robot]), norm_obs_keys=["joints"])
    inside = VecNormalize(VecTransposeImage(DummyVecEnv([camera_robot])), norm_obs_keys=["joints"])
    make_any("fql", inside, policy="MultiInputPolicy", offline_dataset=data).learn_offline(3).save(tmp_path / "model")
    loaded = FQL.load(tmp_path / "model", env=env, device="cpu", offline_dataset=data)
    loaded.learn_offline(2)
    loaded.predict(loaded.get_env().reset())
    with pytest.raises(ValueError, match=r"^env=.* put it inside"):
        loaded.learn(5)
    for space, stack, remedy in (
        (JOINED, True, r"VecNormalize\(VecFrameStack\(env, n\)\)"),
        (IMAGE, False, r"VecNormalize\(VecTransposeImage\(env\), norm_obs=False\)"),
    ):
        plain = VecNormalize(DummyVecEnv([lambda space=space: RandomEnv(space)]), norm_obs=stack)
        env = VecFrameStack(plain, 2) if stack else plain
        with pytest.raises(ValueError, match=remedy):
            make_any("fql", env, policy="FQLPolicy" if stack else "CnnPolicy")
    env = VecNormalize(VecTransposeImage(DummyVecEnv([lambda: RandomEnv(IMAGE)])), norm_obs=False)
    make_any("fql", env, policy="CnnPolicy").learn(12)


def test_what_does_not_fit_a_checkpoints_statistics_is_called_by_its_shape(tmp_path: Path) -> None:
    env = VecNormalize(VecTransposeImage(DummyVecEnv([camera_robot])), norm_obs_keys=["joints"])
    model = make_any("fql", env, policy="MultiInputPolicy")
    model.learn(15, callback=CheckpointCallback(15, str(tmp_path)))
    small = spaces.Dict({"camera": spaces.Box(0, 255, (3, 20, 20), np.uint8), "joints": JOINED})
    with pytest.raises(AssertionError, match=r"\(3, 36, 36\) != \(3, 20, 20\)"):
        FQL.resume(tmp_path, RandomEnv(small))


@pytest.mark.parametrize("shape", [(36, 36, 3), (48, 40, 44)])
def test_images_that_sb3_is_told_to_leave_alone_are_seen_as_they_are(shape: tuple[int, ...]) -> None:
    space = spaces.Dict({"camera": spaces.Box(0, 255, shape, np.uint8), "joints": JOINED})
    arrays = with_images(12)
    for name in NAMES:
        arrays[name]["camera"] = np.zeros((12, *shape), np.uint8)
    env = VecTransposeImage(DummyVecEnv([lambda: RandomEnv(space)]), skip=True)
    load_fitting(arrays, env.observation_space, env.action_space, 1)
    # SB3's transposer moves the last axis, whichever is the smallest
    check_fits(from_arrays(with_images(12)), spaces.Dict({"camera": IMAGE, "joints": JOINED}), env.action_space)


def test_only_what_is_needed_is_read_of_a_file_that_numpy_opened(tmp_path: Path) -> None:
    arrays = regular_arrays(trajectories([4]))
    for i, given in enumerate((arrays, split(arrays, flat=True))):
        np.savez(tmp_path / f"{i}.npz", **given, info=np.array([{"a": 1}], dtype=object))
        assert len(load_dataset(np.load(tmp_path / f"{i}.npz"))) == 4


def test_keys_have_one_order_whatever_the_source(tmp_path: Path) -> None:
    arrays = split(regular_arrays(trajectories([4])))
    for name in NAMES:
        arrays[name] = dict(reversed(arrays[name].items()))
    dataset = from_arrays(arrays)
    assert list(dataset.observations) == list(dataset.next_observations(np.arange(4))) == ["arm", "cube"]


def test_folders_inside_of_a_file_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **split(regular_arrays(trajectories([4])), flat=True))
    with zipfile.ZipFile(path, "a") as file:
        for name in NAMES:
            file.mkdir(name)
    assert load_dataset(path).observation_shape == from_arrays(np.load(path)).observation_shape


def test_minaris_images_are_channels_first() -> None:
    images = np.arange(2 * 6 * 5 * 3, dtype=np.uint8).reshape(2, 6, 5, 3)
    last, first = (spaces.Box(0, 255, shape, np.uint8) for shape in ((6, 5, 3), (3, 6, 5)))
    np.testing.assert_array_equal(_channels_first(images, last), images.transpose(0, 3, 1, 2))
    assert _channels_first(images, first) is images
    assert _channels_first(images, JOINED) is images


def test_arrays_with_other_names_are_pointed_to_the_right_ones(tmp_path: Path) -> None:
    arrays = split(regular_arrays(trajectories([4])), flat=True)
    renamed = {name.replace("/", "_"): array for name, array in arrays.items()}
    np.savez(tmp_path / "renamed.npz", **renamed)
    with pytest.raises(
        DataError, match=r"'observations': it is missing; .*of a Dict space name them observations/<key>"
    ):
        load_dataset(tmp_path / "renamed.npz")
    np.savez(tmp_path / "objects.npz", **split(regular_arrays(trajectories([4]))))
    with pytest.raises(DataError, match=r"it holds pickled objects; .*give each array, as .*observations/<its key>"):
        load_dataset(tmp_path / "objects.npz")


def test_hindsight_goes_with_data() -> None:
    env = BitFlippingEnv(n_bits=4, continuous=True, max_steps=6)
    rng = np.random.default_rng(0)
    steps = 24
    shapes = {key: space.shape for key, space in env.observation_space.items()}
    data = {
        **{
            name: {key: rng.integers(0, 2, (steps, *shape)).astype(np.float32) for key, shape in shapes.items()}
            for name in NAMES
        },
        "actions": rng.uniform(-1, 1, (steps, 4)),
        "rewards": -np.ones(steps),
        "masks": np.ones(steps),
        "terminals": np.arange(steps) % 6 == 5,
    }
    hindsight: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 0}
    model = make_variant("fql", env, policy="MultiInputPolicy", offline_dataset=data, offline_steps=5, **hindsight)
    updates = []
    model.learn(40, callback=lambda local, _: updates.append(local["self"]._n_updates) or True)
    assert updates[4] == updates[5] == 5  # online a callback comes before the update
    assert np.diff(updates)[5:].tolist() == [1] * 34  # while no episode has ended, from the data alone
    assert model.experience.stored == int((model.replay_buffer.ep_length > 0).sum()) > 0
    shares = [model.experience.offline_share(64, 0) for _ in range(200)]
    expected = 64 * steps / (steps + model.experience.stored)
    assert abs(np.mean(shares) - expected) < 1.5


def test_a_model_that_was_made_for_arrays_is_unchanged() -> None:
    dataset = from_arrays(regular_arrays(trajectories([4])))
    assert isinstance(dataset, OfflineDataset)
    assert isinstance(dataset.observations, np.ndarray)
    assert not dataset.observations.flags.writeable
    parts = from_arrays(split(regular_arrays(trajectories([4])))).observations
    assert isinstance(parts, dict)
    assert not any(part.flags.writeable for part in parts.values())
