"""How a batch gets to the device that learns from it: drawn on the CPU, and copied while the device is at work."""

import math
from collections.abc import Sequence

import torch as th
from torch.utils._pytree import tree_flatten, tree_unflatten

from sb3_flow.common.buffers import Batch

ALIGNMENT = 64  # bytes; what begins elsewhere is copied once more by compiled code


def on_device(batch: Batch, device: th.device) -> Batch:
    """A batch of the CPU on another device, in one copy, for which nobody waits on CUDA.

    :param batch: on the CPU
    :param device: where it goes; on the CPU it stays as it is
    """
    if device.type == "cpu":
        return batch
    leaves, spec = tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, th.Tensor)]
    is_cuda = device.type == "cuda"  # other devices may read what is freed by then, if nobody waits
    packed = pack(tensors, pinned=is_cuda).to(device, non_blocking=is_cuda)
    moved = iter(unpack(packed, tensors))
    whole: Batch = tree_unflatten([next(moved) if isinstance(leaf, th.Tensor) else leaf for leaf in leaves], spec)
    return whole


def pack(tensors: Sequence[th.Tensor], pinned: bool) -> th.Tensor:
    """Tensors of any shapes and dtypes side by side in one vector of bytes.

    :param tensors: on the CPU
    :param pinned: in memory that a CUDA device copies by itself, while the CPU goes on
    """
    packed = th.empty(sum(map(_aligned_size, tensors)), dtype=th.uint8, pin_memory=pinned)
    for place, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        place.copy_(tensor)
    return packed


def unpack(packed: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """Views of the tensors in a `pack`.

    :param packed: of `like`, on any device
    :param like: tensors with their shapes and dtypes
    """
    views, start = [], 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        views.append(packed[start : start + size].view(tensor.dtype).view(tensor.shape))
        start += _aligned_size(tensor)
    return views


def _aligned_size(tensor: th.Tensor) -> int:
    return math.ceil(tensor.numel() * tensor.element_size() / ALIGNMENT) * ALIGNMENT
