"""Offline data: one loader a format, one `OfflineDataset` for all."""

from sb3_flow.datasets.dataset import ARRAY_KEYS, Dataset, OfflineDataset, ShardedDataset, from_arrays
from sb3_flow.datasets.describe import describe
from sb3_flow.datasets.errors import DataError, HorizonError
from sb3_flow.datasets.fits import check_fits
from sb3_flow.datasets.lerobot import load_lerobot
from sb3_flow.datasets.load import DatasetSpec, load_dataset, load_fitting
from sb3_flow.datasets.minari import load_minari
from sb3_flow.datasets.ogbench import load_ogbench
from sb3_flow.datasets.replay import from_replay_buffer
from sb3_flow.datasets.robomimic import load_robomimic, read_env_args
from sb3_flow.datasets.save import save_dataset

__all__ = [
    "ARRAY_KEYS",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "HorizonError",
    "OfflineDataset",
    "ShardedDataset",
    "check_fits",
    "describe",
    "from_arrays",
    "from_replay_buffer",
    "load_dataset",
    "load_fitting",
    "load_lerobot",
    "load_minari",
    "load_ogbench",
    "load_robomimic",
    "read_env_args",
    "save_dataset",
]
