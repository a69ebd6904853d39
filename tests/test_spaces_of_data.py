"""Bounds, shapes and units of actions and images: what fits is taken, and what does not is refused with the remedy."""

import warnings
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from dataset_files import compact_arrays, regular_arrays, trajectories, write_minari
from gymnasium import spaces
from gymnasium.wrappers import ClipAction, TransformAction
from helpers import ACTION, VARIANTS, VECTOR, RandomEnv, make_model, make_variant, observations, warned
from stable_baselines3.common.noise import NormalActionNoise

from sb3_flow import SACFlow
from sb3_flow.common.checks import check_spaces
from sb3_flow.datasets import DataError, check_fits, from_arrays, load_dataset
from sb3_flow.datasets.ogbench import measure
from sb3_flow.export import ActingPolicy, export_onnx

RNG = np.random.default_rng(0)
LOW = RNG.uniform(-3, 3, 64)
HIGH = LOW + RNG.uniform(0.1, 5, 64)
UNEVEN = {
    "float32": spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32), dtype=np.float32),
    "float64": spaces.Box(LOW, HIGH, dtype=np.float64),
    "matrix": spaces.Box(LOW[:6].reshape(2, 3).astype(np.float32), HIGH[:6].reshape(2, 3).astype(np.float32)),
    "far": spaces.Box(1e6, 1e6 + 1, (3,), np.float32),
}
MATRIX = spaces.Box(-1.0, 1.0, (2, 3), np.float32)


def data(**changes: Any) -> dict[str, Any]:
    return regular_arrays(trajectories([20, 30])) | changes


# --- Actions stay inside ---


class StrictEnv(RandomEnv):
    """Takes only what its action space contains."""

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return super().step(action)


@pytest.mark.parametrize("space", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize("horizon", [1, 3])
def test_every_action_is_in_the_space(space: spaces.Box, horizon: int) -> None:
    noise = {} if horizon > 1 else {"action_noise": NormalActionNoise(np.zeros(space.shape), np.ones(space.shape))}
    model = make_model(env=StrictEnv(action_space=space), horizon_length=horizon, **noise).learn(14)
    with th.no_grad():
        for sign in (1, -1):
            model.actor.velocity.velocity_head.bias.fill_(sign * 1e3)  # type: ignore[operator, union-attr]
            assert space.contains(model.predict(observations(model, 1)[0], deterministic=True)[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_exported_actions_are_in_the_space_too(name: str) -> None:
    space = UNEVEN["float32"]
    model = make_variant(name, env=RandomEnv(action_space=space))
    obs = th.as_tensor(1e3 * observations(model))
    actions = ActingPolicy(model.policy)(obs).reshape(-1, *space.shape)
    assert all(space.contains(action) for action in actions.detach().numpy())


@pytest.mark.parametrize("limit", [np.inf, 3.4e38])
def test_bounds_that_nothing_can_be_spread_over_are_refused(limit: float) -> None:
    space = spaces.Box(-limit, limit, (2,), np.float32)
    with pytest.raises(ValueError, match=r"action_space=.*bounds must be finite, and so must high - low"):
        check_spaces(VECTOR, space)


def test_the_advice_for_infinite_bounds_can_be_followed() -> None:
    env = ClipAction(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match=r"Leave out gymnasium.wrappers.ClipAction"):
        make_model(env=env)
    make_model(env=gym.make("Pendulum-v1"))
    make_model(env=TransformAction(env, lambda action: action, spaces.Box(-2.0, 2.0, (1,), np.float32)))


def test_environments_of_gymnasium_s_vectors_are_told_what_to_use(tmp_path: Path) -> None:
    env: Any = gym.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync")
    model = make_model(env="Pendulum-v1")
    model.save(tmp_path / "model")
    for call in (
        lambda: make_model(env=env),
        lambda: model.set_env(env),
        lambda: SACFlow.load(tmp_path / "model", env=env),
    ):
        with pytest.raises(ValueError, match="make_vec_env"):
            call()


def test_environments_are_loaded_by_their_id(tmp_path: Path) -> None:
    make_model(env="Pendulum-v1").save(tmp_path / "model")
    env: Any = "Pendulum-v1"
    loaded = SACFlow.load(tmp_path / "model", env=env, device="cpu")
    loaded.set_env(env)
    loaded.learn(3)


# --- Data ---


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("shape", [(2, 3), (6,)])
def test_data_of_matrices_of_actions_are_learned_from(shape: tuple[int, ...], horizon: int) -> None:
    actions = RNG.uniform(-1, 1, (50, *shape)).astype(np.float32)
    model = make_model(
        env=RandomEnv(action_space=MATRIX),
        critic="target",
        offline_dataset=data(actions=actions),
        offline_steps=5,
        learning_starts=0,
        horizon_length=horizon,
    ).learn(12)
    assert model._sample(4).actions.shape == (4, 6 * horizon)
    np.testing.assert_array_equal(model._dataset.at(0).actions, actions.reshape(50, 6))  # type: ignore[union-attr]


def test_matrices_of_another_shape_are_refused_with_the_remedy() -> None:
    actions = np.zeros((50, 3, 2), np.float32)
    with pytest.raises(DataError, match=r"'actions': one has shape \(3, 2\).*reshape them to \(N, \*\(2, 3\)\)"):
        make_model(env=RandomEnv(action_space=MATRIX), offline_dataset=data(actions=actions))


def test_images_with_the_channel_last_are_refused_with_the_remedy() -> None:
    env = RandomEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8))
    images = RNG.integers(0, 256, (50, 36, 36, 3), dtype=np.uint8)
    last = data(observations=images, next_observations=images)
    with pytest.raises(DataError, match=r"channel first: transpose them too, observations.transpose\(0, 3, 1, 2\)"):
        make_model("CnnPolicy", env, critic="target", offline_dataset=last, buffer_size=50)
    first = images.transpose(0, 3, 1, 2)
    make_model(
        "CnnPolicy",
        env,
        critic="target",
        offline_dataset=data(observations=first, next_observations=first),
        offline_steps=2,
        learning_starts=0,
        buffer_size=50,
    ).learn(3)


@pytest.mark.parametrize(
    ("scale", "warned"), [(0.4, True), (0.39, True), (1.0, False)], ids=["raw", "raw, rarely at the bounds", "scaled"]
)
def test_actions_in_the_units_of_a_narrow_space_are_pointed_out(scale: float, warned: bool) -> None:
    actions = (scale * RNG.uniform(-1, 1, (50, 2))).astype(np.float32)
    env = RandomEnv(action_space=spaces.Box(-0.4, 0.4, (2,), np.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(env=env, critic="target", offline_dataset=data(actions=actions))
        make_model(critic="target", offline_dataset=data(actions=actions))  # whose bounds are 1
    assert len([w for w in caught if "environment's units" in str(w.message)]) == warned


def test_a_file_with_both_layouts_is_refused_as_arrays_are(tmp_path: Path) -> None:
    both = compact_arrays(trajectories([20, 30]))
    both["next_observations"] = np.roll(both["observations"], -1, axis=0)
    with pytest.raises(DataError, match="and not both"):
        from_arrays(both)
    np.savez(tmp_path / "both.npz", **both)
    for read in (load_dataset, measure):
        with pytest.raises(DataError, match=r"both\.npz: 'next_observations': .* and not both"):
            read(tmp_path / "both.npz")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("low", "high"),
    [(-np.inf, np.inf), (-1.0, np.inf), (-np.inf, 1.0), (0.0, 0.0)],
    ids=["both", "high", "low", "none"],
)
def test_minari_data_that_no_bounds_scale_are_refused(low: float, high: float, tmp_path: Path) -> None:
    pytest.importorskip("minari")
    space = spaces.Box(np.array([-1, low], np.float32), np.array([1, high], np.float32))
    path = write_minari(tmp_path / "data", [5, 8], low=0.0, high=0.0, action_space=space)
    with pytest.raises(DataError, match=r"'action_space': it is Box.*bounds .* cannot be scaled"):
        load_dataset(path)


def test_minari_actions_outside_of_their_own_space_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    space = spaces.Box(-0.5, 0.5, (2,), np.float32)
    with pytest.raises(DataError, match=r"one is \d.*recorded outside of the data's own space, Box\(-0.5, 0.5"):
        load_dataset(write_minari(tmp_path / "data", [5, 8], action_space=space))


def test_minari_dicts_are_joined_in_the_order_of_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    # Keywords and an OrderedDict keep their order, which sorting would change, within a key too
    box = spaces.Box(-9.0, 9.0, (2,), np.float64)
    space = spaces.Dict(z=box, a=spaces.Dict(OrderedDict(y=box, b=box)), m=box)

    def observations_of(*shape: int) -> dict[str, Any]:
        z, y, b, m = (np.full((*shape, 2), float(i)) for i in range(4))
        return {"z": z, "a": {"y": y, "b": b}, "m": m}

    (tmp_path / "data").mkdir()
    storage = MinariStorage.new(tmp_path / "data", space, spaces.Box(-1, 1, (1,), np.float32))
    storage.update_metadata({"dataset_id": "test/dict-v0", "minari_version": "0.5.3"})
    ends = [False] * 4 + [True]
    episode = {"rewards": [0.0] * 5, "terminations": [False] * 5, "truncations": ends, "infos": {}}
    actions = np.zeros((5, 1), np.float32)
    storage.update_episodes([EpisodeBuffer(id=0, observations=observations_of(6), actions=actions, **episode)])
    seen = load_dataset(tmp_path / "data").at(0).observations[0]
    np.testing.assert_array_equal(seen, spaces.flatten(space, observations_of()))


def test_minari_data_of_matrices_are_scaled_and_flattened(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    space = spaces.Box(-2.0, 1.0, (2, 3), np.float32)
    dataset = load_dataset(write_minari(tmp_path / "data", [5, 8], action_space=space))
    assert (dataset.action_shape, dataset.action_dim, len(dataset)) == ((2, 3), 6, 13)
    assert np.abs(dataset.at(0).actions).max() <= 1


# --- Numbers of settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("buffer_size", 1e3),
        ("buffer_size", np.int64(1000)),
        ("learning_starts", 1e1),
        ("batch_size", 32.0),
        ("train_freq", 2.0),
        ("train_freq", np.int64(2)),
        ("train_freq", [2.0, "step"]),
        ("gradient_steps", 1.0),
        ("stats_window_size", 10.0),
        ("horizon_length", np.int64(2)),
        ("n_steps", 3.0),
    ],
)
def test_whole_numbers_are_taken_whatever_their_type(name: str, value: Any) -> None:
    make_model(**{name: value}).learn(14)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("buffer_size", 0),
        ("buffer_size", -5),
        ("buffer_size", 1.5),
        ("train_freq", 0),
        ("train_freq", (0.5, "step")),
        ("learning_starts", "50"),
        ("learning_starts", -1),
        ("gradient_steps", -2),
        ("gradient_steps", True),
        ("stats_window_size", 0),
    ],
)
def test_sizes_that_are_none_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.* is not allowed: an integer >= "):
        make_model(**{name: value})


def test_the_window_of_the_statistics_is_changed_by_load(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    loaded = SACFlow.load(tmp_path / "model", env=RandomEnv(), device="cpu", stats_window_size=3).learn(5)
    assert loaded.ep_info_buffer is not None
    assert loaded.ep_info_buffer.maxlen == 3


# --- Acting after an export ---


@pytest.mark.slow
def test_an_export_leaves_acting_compiled(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = make_model(compile=True)
    export_onnx(model, tmp_path / "policy.onnx")
    acting: Any = model.actor.action_fn
    assert (acting.failed, acting._compiled) == (False, None)  # it is compiled by the first decision, not by the export


@pytest.mark.parametrize(("scale", "warns"), [(1.0, False), (3.0, False), (57.3, True)])
def test_observations_in_other_units_are_pointed_out(scale: float, warns: bool) -> None:
    arrays = data()
    space = spaces.Box(np.float32([-np.inf, -4, -np.inf]), np.float32([np.inf, 4, 9]), dtype=np.float32)
    for name in ("observations", "next_observations"):
        arrays[name] = np.clip(arrays[name], -4, 4)
    arrays["observations"][3, 1] = arrays["next_observations"][2, 1] = 4 * scale
    by_key = {**arrays, **{name: {"joints": arrays[name]} for name in ("observations", "next_observations")}}
    for given, shown in ((arrays, space), (by_key, spaces.Dict({"joints": space}))):
        messages = warned(partial(check_fits, from_arrays(given), shown, ACTION))
        assert len(messages) == warns
        assert all("in their number 1, but the environment shows -4 to 4: are they in" in line for line in messages)
