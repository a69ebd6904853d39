"""What HDF5 itself does not check: that the numbers of an array are in the file at all."""

from math import prod
from pathlib import Path
from typing import Any

from sb3_flow.datasets.errors import DataError, reading


def check_stored(source: str | Path, key: str, array: Any) -> None:
    """Refuse an array with parts that were never written, or that a damaged shape makes up.

    HDF5 would read them as zeros, and for a large made-up shape be busy for hours.

    :param array: an h5py.Dataset
    :raises DataError: if the file holds less than its shape says
    """
    with reading(source, key):
        if array.chunks is not None:
            expected = prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
            complete = array.id.get_num_chunks() == expected
        else:
            complete = array.dtype.hasobject or array.id.get_storage_size() == array.nbytes
    if not complete:
        raise DataError(source, key, f"the file does not hold all numbers of its shape {array.shape}")
