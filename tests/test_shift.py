"""Images of a batch that are moved at random (`random_shift`)."""

from typing import Any

import numpy as np
import pytest
import torch as th
from dataset_files import regular_arrays, trajectories
from gymnasium import spaces
from helpers import ON_POLICY, ONE_OF_EACH, RandomEnv, make_any, make_variant
from hypothesis import given
from hypothesis import strategies as st

from sb3_flow.common.shift import image_keys, shift_images, shifted

IMAGE = spaces.Box(0, 255, (40, 44, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
ROBOT = spaces.Dict({"camera": IMAGE, "joints": VECTOR})
VECTOR_ONLY = spaces.Dict({"joints": VECTOR})


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    channels=st.integers(1, 3),
    offsets=st.lists(st.tuples(st.integers(-7, 7), st.integers(-7, 7)), min_size=1, max_size=4),
    dtype=st.sampled_from([th.uint8, th.float32]),
)
def test_a_shift_is_a_crop_of_the_image_with_its_border_repeated(
    height: int, width: int, channels: int, offsets: list[tuple[int, int]], dtype: th.dtype
) -> None:
    images = th.randint(0, 256, (len(offsets), channels, height, width)).to(dtype)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (7, 7), (7, 7)), mode="edge")
    wanted = [padded[i, :, 7 + y : 7 + y + height, 7 + x : 7 + x + width] for i, (y, x) in enumerate(offsets)]
    moved = shifted(images, th.tensor(offsets))
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved.numpy(), np.stack(wanted))


def filled(space: spaces.Space[Any], name: str = "flow_t", **kwargs: Any) -> Any:
    """A model with random experience."""
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy"
    model = make_variant(name, RandomEnv(space), policy=policy, learning_starts=20, buffer_size=50, **kwargs)
    model.learn(20)
    return model


def test_each_image_of_a_batch_moves_alone_and_vectors_stay() -> None:
    model = filled(ROBOT, random_shift=3)
    batches = {}
    for pixels in (0, 3):
        model.random_shift = pixels
        np.random.seed(0)
        batches[pixels] = model._sample(32)
    still, moved = batches[0], batches[3]
    for before, after in (("observations", "observations"), ("next_observations", "next_observations")):
        th.testing.assert_close(getattr(moved, after)["joints"], getattr(still, before)["joints"], rtol=0, atol=0)
    found = []
    for name in ("observations", "next_observations"):
        pairs = zip(getattr(still, name)["camera"], getattr(moved, name)["camera"], strict=True)
        found.append([offset_of(image, other, 3) for image, other in pairs])
    assert all(len(set(offsets)) > 16 for offsets in found)  # of 49
    assert {number for offsets in found for offset in offsets for number in offset} == set(range(-3, 4))
    assert sum(one == two for one, two in zip(*found, strict=True)) < 8
    th.testing.assert_close(moved.actions, still.actions, rtol=0, atol=0)


def offset_of(image: th.Tensor, moved: th.Tensor, pixels: int) -> tuple[int, int]:
    """By how much an image was moved; its random pixels tell."""
    tried = [(y, x) for y in range(-pixels, pixels + 1) for x in range(-pixels, pixels + 1)]
    (found,) = (offset for offset in tried if th.equal(shifted(image[None], th.tensor([offset]))[0], moved))
    return found


def test_without_a_shift_and_without_images_nothing_is_drawn() -> None:
    images, vectors = filled(IMAGE)._sample(8), filled(VECTOR_ONLY)._sample(8)
    state = th.get_rng_state()
    assert shift_images(images, 0, IMAGE, {}) is images
    assert shift_images(vectors, 2, VECTOR_ONLY, {}).observations["joints"] is vectors.observations["joints"]
    assert th.equal(state, th.get_rng_state())


def test_what_is_no_image_stays_beside_one() -> None:
    space = spaces.Dict({"camera": IMAGE, "map": spaces.Box(-1.0, 1.0, (2, 3, 3), np.float32)})
    model = filled(space, random_shift=4)
    assert image_keys(model.observation_space, {}) == {"camera": (3, 40, 44)}
    floats = spaces.Box(0.0, 1.0, (3, 40, 44), np.float32)
    assert image_keys(floats, {"normalize_images": False}) == {"": (3, 40, 44)}
    assert image_keys(floats, {}) == image_keys(spaces.Box(0.0, 1.0, (40, 44, 3)), {"normalize_images": False}) == {}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_algorithm_learns_from_moved_images(name: str) -> None:
    weights = []
    for pixels in (0, 2, 2):
        model = filled(ROBOT, name, random_shift=pixels, seed=0)
        model.train(2, 8)
        weights.append(th.nn.utils.parameters_to_vector(model.critic.parameters()))
    assert th.equal(weights[1], weights[2])
    assert not th.equal(weights[0], weights[1])


@pytest.mark.parametrize("name", ON_POLICY)
def test_moved_images_are_cloned(name: str) -> None:
    arrays = regular_arrays(trajectories([20]))
    images = np.random.default_rng(0).integers(0, 256, (21, 3, 40, 44), np.uint8)
    data = {**arrays, "observations": images[:-1], "next_observations": images[1:]}
    weights = []
    for pixels in (0, 2, 2):
        model = make_any(name, RandomEnv(IMAGE), policy="CnnPolicy", random_shift=pixels, seed=0)
        model.pretrain(data, 2)
        weights.append(th.nn.utils.parameters_to_vector(model.actor.parameters()))
    assert th.equal(weights[1], weights[2])
    assert not th.equal(weights[0], weights[1])


@pytest.mark.parametrize("name", ["flow_t", *ON_POLICY])
@pytest.mark.parametrize(
    ("space", "pixels", "message"),
    [
        (VECTOR, 2, r"random_shift=2 .*it is for images, channels first, and Box.* has none"),
        (VECTOR_ONLY, 2, "it is for images, channels first, and Dict.* has none"),
        (spaces.Box(-1.0, 1.0, (2, 3, 4), np.float32), 2, "it is for images"),
        (ROBOT, 40, "random_shift=40 .*less than the 40 pixels of camera; DrQ"),
        (ROBOT, -1, "random_shift=-1 .*an integer >= 0"),
        (ROBOT, 1.5, "random_shift=1.5 .*an integer >= 0"),
    ],
)
def test_a_shift_of_nothing_or_by_too_much_is_refused(name: str, space: Any, pixels: Any, message: str) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=message):
        make_any(name, RandomEnv(space), policy=policy, random_shift=pixels)
    model = make_any(name, RandomEnv(space), policy=policy)
    model.random_shift = pixels
    with pytest.raises(ValueError, match=message):
        model.learn(1)
