"""The guard against numbers that are not finite: no net takes a bad step, and no update waits for the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as th

from sb3_flow.common.checks import NonFiniteError, non_finite
from sb3_flow.common.graphs import takes_found_inf

MOST_RECORDS = 10_000  # half a kilobyte each


class Record(NamedTuple):
    """What one update of a net was made from, in the order it was made; the last two are its loss and its gradient."""

    update: int
    where: str
    sizes: dict[str, int]
    bad: th.Tensor  # (len(sizes),): how many numbers of each are not finite

    def error(self) -> NonFiniteError | None:
        """What stopped this update, None if nothing did."""
        bad = self.bad.tolist()
        if not any(bad[-2:]):
            return None
        name, size, count = next(each for each in zip(self.sizes, self.sizes.values(), bad, strict=True) if each[-1])
        return non_finite(f"{self.where} update", name, int(count), size)


class Guard:
    """Lets nothing change from the first update on whose loss or gradient is not finite.

    Whether there was one is known on the device alone, until `error` reads it.

    :param device: of the nets
    """

    def __init__(self, device: th.device):
        self.device = device
        self.update = 0  # the number of the one that is made
        # As a float, 0 or 1: fused optimizers take it so. CUDA graphs have its address
        self.found_inf = th.zeros((), dtype=th.float32, device=device)
        self._records: list[Record] = []

    def begin(self) -> None:
        """Forget all updates."""
        self.found_inf.zero_()
        self._records.clear()

    @property
    def stopped(self) -> th.Tensor:
        """Whether there was a bad update, (), on the device."""
        return self.found_inf > 0

    @property
    def is_full(self) -> bool:
        """Whether there are so many updates to remember that it is time to read."""
        return len(self._records) >= MOST_RECORDS

    def look(self, bad: th.Tensor) -> None:
        """Look at an update before any net takes it.

        :param bad: (n,) how many numbers of each tensor that the loss was made of, of the loss and of the norm of its
            gradient are not finite, see `count_bad`
        """
        self.found_inf.copy_(th.maximum(self.found_inf, bad[-2:].amax()))

    def remember(self, where: str, sizes: dict[str, int], bad: th.Tensor) -> None:
        """Keep what an update was made from, for `error`.

        :param where: the net that is updated
        :param sizes: how many numbers there are of each tensor that the loss was made of, the last one of the loss
        :param bad: (len(sizes) + 1,), what `look` saw, copied: CUDA graphs overwrite their results
        """
        self._records.append(Record(self.update, where, {**sizes, f"{where}_gradient_norm": 1}, bad.clone()))

    def step(self, optimizer: th.optim.Optimizer) -> None:
        """One step of an optimizer, unless there was a bad update.

        On another device PyTorch's Adam skips it by itself, if it is fused; else the flag is read.

        :param optimizer: its parameters have gradients
        """
        if takes_found_inf(optimizer) and not is_free_to_read(self.found_inf):
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]  # as torch.amp.GradScaler does it
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif not self.found_inf:
            optimizer.step()

    def error(self) -> tuple[int, NonFiniteError] | None:
        """Wait for the device, and forget the updates.

        :return: the number of the first bad update, and the error that names what is bad in it; None if all were good
        """
        records, self._records = self._records, []
        if not self.found_inf:
            return None
        return next((record.update, error) for record in records if (error := record.error()) is not None)


def is_free_to_read(x: th.Tensor) -> bool:
    """Whether nothing waits for whoever reads its numbers, and no compiled code is cut in two."""
    return x.device.type == "cpu" and not th.compiler.is_compiling()


def count_bad(x: th.Tensor) -> th.Tensor:
    """How many numbers of a tensor are NaN or infinite, ()."""
    # Not by x * 0, for which torch.compile puts 0
    return x.detach().isfinite().logical_not().count_nonzero()


def set_where(condition: th.Tensor, tensors: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> None:
    """Set all of these tensors, or none.

    :param condition: ()
    :param tensors: what is set
    :param values: what they are set to
    """
    if is_free_to_read(condition) and not condition:
        return
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(th.where(condition, value, tensor))


class Statistics:
    """The buffers of a module: running statistics, which its forward pass changes.

    The layers that have some are looked up once: to walk through all of them takes as long as the rest of the guard.

    :param module: tensors that its layers get later are seen, new layers are not
    """

    def __init__(self, module: th.nn.Module):
        self._layers = [layer for layer in module.modules() if any(True for _ in layer.buffers(recurse=False))]

    @property
    def tensors(self) -> list[th.Tensor]:
        """All of them, themselves."""
        return [tensor for layer in self._layers for tensor in layer.buffers(recurse=False)]

    @property
    def moving(self) -> list[th.Tensor]:
        """Those that a forward pass changes now: of layers in training mode."""
        return [tensor for layer in self._layers if layer.training for tensor in layer.buffers(recurse=False)]
