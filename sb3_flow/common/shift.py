"""Images of a batch moved at random by a few pixels, so that what is learned from few of them holds for others."""

from collections.abc import Collection, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import require
from sb3_flow.datasets.observations import leaves, parts, whole


def image_keys(observation_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of what a policy takes for images, (channels, height, width), by key; an image alone has the key "".

    :param observation_space: of the model
    :param policy_kwargs: with `normalize_images=False` floats may be images, too
    """
    floats_too = not policy_kwargs.get("normalize_images", True)
    found = {
        key: leaf.shape or ()
        for key, leaf in leaves(observation_space).items()
        if is_image_space(leaf, normalized_image=floats_too)
    }
    # SB3 has put the channels of bytes first; those of floats are where the environment has them
    return {key: shape for key, shape in found.items() if shape[0] == min(shape)}


def check_shift(pixels: int, observation_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]) -> None:
    """Refuse a shift where there is nothing to be shifted, or nothing would be left of it.

    :param pixels: largest shift, >= 0

    The other parameters are those of `image_keys`.

    :raises ValueError: without images, and for one that is no larger than the shift
    """
    if pixels == 0:
        return
    shapes = image_keys(observation_space, policy_kwargs)
    advice = f"it is for images, channels first, and {observation_space} has none"
    require(len(shapes) > 0, "random_shift", pixels, advice)
    for key, shape in shapes.items():
        advice = f"less than the {min(shape[1:])} pixels of {key or 'the images'}; DrQ-v2 takes 4 of 84"
        require(pixels < min(shape[1:]), "random_shift", pixels, advice)


def shifted(images: th.Tensor, offsets: th.Tensor) -> th.Tensor:
    """Images moved by whole pixels, with their borders repeated into what becomes free.

    Source: DrQ-v2 (https://arxiv.org/abs/2107.09645), section 3.1, without its interpolation, which whole pixels do
    not need.

    :param images: (B, C, H, W) of any dtype
    :param offsets: (B, 2) whole numbers: row and column that the first pixel shows
    """
    batch, channels, height, width = images.shape
    down, right = offsets[:, :1], offsets[:, 1:]
    rows = (th.arange(height, device=images.device) + down).clamp(0, height - 1)  # (B, H)
    columns = (th.arange(width, device=images.device) + right).clamp(0, width - 1)  # (B, W)
    # Whole rows first: the numbers of a row lie together
    first = th.arange(batch * channels, device=images.device).view(batch, channels, 1) * height
    moved = images.reshape(-1, width).index_select(0, (first + rows[:, None]).flatten()).view(images.shape)
    return moved.gather(3, columns[:, None, None].expand(images.shape))


def shift_images(
    batch: Batch, pixels: int, observation_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]
) -> Batch:
    """A batch whose images are each moved by up to so many pixels: those of a step, and those after it, independently.

    :param batch: on any device
    :param pixels: largest shift in each direction; 0 leaves everything as it is, and draws nothing

    The other parameters are those of `image_keys`.
    """
    if pixels == 0:
        return batch
    keys = image_keys(observation_space, policy_kwargs)
    observations, after = (_shift(each, pixels, keys) for each in (batch.observations, batch.next_observations))
    return batch._replace(observations=observations, next_observations=after)


def _shift(observations: PyTorchObs, pixels: int, keys: Collection[str]) -> PyTorchObs:
    moved = dict(parts(observations))
    for key in keys:
        images = moved[key]
        moved[key] = shifted(images, th.randint(-pixels, pixels + 1, (len(images), 2), device=images.device))
    return whole(moved)
