"""Data as a file of ours."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sb3_flow.common.checks import require
from sb3_flow.common.files import replacing
from sb3_flow.datasets.arrays import BOUNDS
from sb3_flow.datasets.dataset import OfflineDataset
from sb3_flow.datasets.load import DatasetSpec, load_dataset
from sb3_flow.datasets.observations import Observations, full_name, parts


def save_dataset(spec: DatasetSpec, path: str | PathLike[str]) -> Path:
    """Write data as an npz file that `load_dataset` reads, whatever they came from.

    :param spec: see `load_dataset`
    :param path: of the file; ".npz" is added where it has no ending
    :return: where it is
    :raises ValueError: for data in several files, which stay where they are, for another ending, and for a folder
    """
    data = load_dataset(spec)
    advice = "its files are read one after the other, and stay what they are"
    require(isinstance(data, OfflineDataset), "spec", spec, advice)
    assert isinstance(data, OfflineDataset)
    target = Path(path).expanduser()
    target = target if target.suffix else target.with_name(f"{target.name}.npz")
    require(target.suffix == ".npz", "path", str(path), 'files of ours end in ".npz"')
    require(not target.is_dir(), "path", str(path), f"{target} is a folder; choose another name")
    with replacing(target) as file:
        np.savez(file, **_arrays(data))
    return target


def _arrays(data: OfflineDataset) -> dict[str, Any]:
    """By the names of `from_arrays`."""
    arrays = _named("observations", data.observations)
    if data.after is None:
        is_step = np.zeros(len(data.ends), np.bool_)
        is_step[data.rows(np.arange(len(data)))] = True
        arrays["valids"] = is_step
    else:
        arrays |= _named("next_observations", data.after)
    if data.scaled_by is not None:
        arrays |= dict(zip(BOUNDS, (data.scaled_by.low, data.scaled_by.high), strict=True))
    actions = data.actions.reshape(-1, *data.action_shape)
    return arrays | {"actions": actions, "rewards": data.rewards, "masks": data.masks, "terminals": data.ends}


def _named(name: str, observations: Observations) -> dict[str, Any]:
    return {full_name(name, key): part for key, part in parts(observations).items()}
