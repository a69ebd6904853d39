"""What training logs: summed on the device, and read from it no sooner than the logger writes it down."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter, Logger


class Sum:
    """The sum of what several updates say of themselves, as one vector for each group of names."""

    def __init__(self, total: th.Tensor):
        self.total = total
        self.count = 1
        self._means: list[float] | None = None

    def add(self, values: th.Tensor) -> None:
        self.total += values
        self.count += 1

    def means(self) -> list[float]:
        """The means, which waits for the device."""
        if self._means is None:
            self._means = (self.total / self.count).tolist()
        return self._means


def _of_float(name: str) -> Callable[..., Any]:
    def operator(self: Any, *others: Any) -> Any:
        return getattr(float(self), name)(*map(float, others))

    return operator


class OnDevice:
    """A number that may still be on the device; using it reads it.

    It stands for a float where someone looks at a logger's values before they are written.

    :param of: holds it
    :param index: which of its numbers it is
    """

    __add__, __radd__, __sub__, __rsub__ = map(_of_float, ("__add__", "__radd__", "__sub__", "__rsub__"))
    __mul__, __rmul__, __truediv__, __rtruediv__ = map(
        _of_float, ("__mul__", "__rmul__", "__truediv__", "__rtruediv__")
    )
    __lt__, __le__, __gt__, __ge__ = map(_of_float, ("__lt__", "__le__", "__gt__", "__ge__"))
    __neg__, __abs__, __bool__ = map(_of_float, ("__neg__", "__abs__", "__bool__"))
    __pow__, __rpow__, __int__ = map(_of_float, ("__pow__", "__rpow__", "__int__"))

    def __init__(self, of: Sum, index: int):
        self.of = of
        self.index = index

    def __float__(self) -> float:
        return self.of.means()[self.index]

    def __round__(self, ndigits: int | None = None) -> float:
        return round(float(self), ndigits)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(float(self), dtype)

    def __eq__(self, other: object) -> bool:
        return float(self) == other

    def __hash__(self) -> int:
        return hash(float(self))

    def __repr__(self) -> str:
        return repr(float(self))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)


Real.register(OnDevice)


class Log:
    """Collects what the updates of one call of `train` say of themselves."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Sum] = {}

    def add(self, names: tuple[str, ...], values: th.Tensor) -> None:
        """Take numbers of one update, which the log copies: a CUDA graph overwrites its own.

        :param names: what they are called
        :param values: (len(names),)
        """
        if names in self._sums:
            self._sums[names].add(values)
        else:
            self._sums[names] = Sum(values.detach().clone())

    def record(self, logger: Logger) -> None:
        """Hand the means to a logger, which reads them from a device that computes by itself when it writes them."""
        if not any(isinstance(output, _Reader) for output in logger.output_formats):
            logger.output_formats.insert(0, _Reader())
        for names, numbers in self._sums.items():
            waits = numbers.total.device.type != "cpu"
            for index, name in enumerate(names):
                logger.record(f"train/{name}", OnDevice(numbers, index) if waits else numbers.means()[index])


class _Reader(KVWriter):
    """A logger's first output: the others, which expect floats, find floats."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for key, value in key_values.items():
            if isinstance(value, OnDevice):
                key_values[key] = float(value)

    def close(self) -> None:
        pass
