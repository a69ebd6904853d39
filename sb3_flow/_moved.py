"""What is left at the module paths of version 0.1, until 0.3: names that are looked up where they are now."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def moved(old: str, *new: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that has moved, with a warning for whoever imports it.

    Models, policies and buffers that 0.1 saved name their classes by the old paths.

    :param old: the module's old path
    :param new: the modules that its names are in now
    """
    warnings.warn(f"{old} has moved: import from {' or '.join(new)}", DeprecationWarning, stacklevel=3)

    def __getattr__(name: str) -> Any:  # noqa: N807 (a module's)
        for path in new:
            module = importlib.import_module(path)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return __getattr__
