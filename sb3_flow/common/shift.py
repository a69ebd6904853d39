"""Images of a batch moved at random by a few pixels, so that what is learned from few of them holds for others."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_flow.common.buffers import Batch
from sb3_flow.common.checks import require
from sb3_flow.datasets.observations import leaves


def check_shift(pixels: int, observation_space: spaces.Space[object]) -> None:
    """Refuse a shift where there is nothing to be shifted, or nothing would be left of it.

    :param pixels: largest shift, >= 0
    :param observation_space: of the model
    :raises ValueError: without images, and for one that is no larger than the shift
    """
    if pixels == 0:
        return
    sizes = [leaf.shape[-2:] for leaf in leaves(observation_space).values() if leaf.shape and _are_images(leaf.shape)]
    advice = f"it is for images, and {observation_space} has none"
    require(len(sizes) > 0, "random_shift", pixels, advice)
    smallest = min(map(min, sizes))
    require(pixels < smallest, "random_shift", pixels, f"less than the images' {smallest} pixels; DrQ-v2 takes 4 of 84")


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


def shift_images(batch: Batch, pixels: int) -> Batch:
    """A batch whose images are each moved by up to so many pixels, those before and after a step independently.

    :param batch: on any device
    :param pixels: largest shift in each direction; 0 leaves everything as it is, and draws nothing
    """
    if pixels == 0:
        return batch
    observations, after = (_shift(each, pixels) for each in (batch.observations, batch.next_observations))
    return batch._replace(observations=observations, next_observations=after)


def _shift(observations: PyTorchObs, pixels: int) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: _shift_part(part, pixels) for key, part in observations.items()}
    return _shift_part(observations, pixels)


def _shift_part(part: th.Tensor, pixels: int) -> th.Tensor:
    if not _are_images(part.shape[1:]):
        return part
    return shifted(part, th.randint(-pixels, pixels + 1, (len(part), 2), device=part.device))


def _are_images(shape: tuple[int, ...]) -> bool:
    """Whether observations of this shape are images, with the channels first."""
    return len(shape) == 3
