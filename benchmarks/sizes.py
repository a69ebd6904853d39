"""What a replay buffer, data and a saved model take, computed from the arrays themselves; no training.

    python benchmarks/sizes.py --out benchmarks/results/sizes

`benchmarks/tables.py` puts the CSVs into docs/sizes.md.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from contenders import OURS, Ours
from gymnasium import spaces
from records import append_record

from sb3_flow import SACFlow
from sb3_flow.common.files import write_text
from sb3_flow.datasets import OfflineDataset
from sb3_flow.envs import register

ROWS = 1_000  # of a buffer and of data: both grow with their rows alone
TASKS = ("Pendulum-v1", "Hopper-v4", "HalfCheetah-v4", "Ant-v4", "Humanoid-v4", "cube-double-play-singletask-task2-v0")
IMAGES = "images, 3 x 84 x 84"
MODEL_TASK = "HalfCheetah-v4"
MODELS = ("flow_t", "flow_g", "flow_mlp", "flow_t_categorical", "fql", "flow_rl", "qsm", "dime")


class Spaces(gym.Env[Any, Any]):
    """An environment that is never stepped."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


class RowSize(NamedTuple):
    """Bytes a step."""

    task: str
    numbers: int  # of an observation
    actions: int
    dtype: str
    buffer: float
    data: float  # in the layout with next observations of their own
    compact_data: float  # in OGBench's: the observation after a step is that of the next row


class ModelSize(NamedTuple):
    """Of an algorithm with its default nets."""

    algo: str
    task: str
    actor: int  # parameters
    all_nets: int  # parameters, targets among them
    file: int  # bytes of the saved model, with Adam's moments


def n_bytes(holder: Any, names: Sequence[str]) -> int:
    """Bytes of the arrays that a holder has under these names."""
    arrays = [getattr(holder, name, None) for name in names]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def data_bytes(observation_space: spaces.Box, action_dim: int, compact: bool) -> float:
    """Bytes a row of data in memory."""
    dtype = np.uint8 if observation_space.dtype == np.uint8 else np.float32
    observations = np.zeros((ROWS, *observation_space.shape), dtype)
    arrays = {
        "observations": observations,
        "actions": np.zeros((ROWS, action_dim), np.float32),
        "rewards": np.zeros(ROWS, np.float32),
        "masks": np.ones(ROWS, np.float32),
        "ends": np.arange(ROWS) == ROWS - (2 if compact else 1),
    }
    further = {"is_step": np.arange(ROWS) < ROWS - 1} if compact else {"next_observations": observations.copy()}
    dataset = OfflineDataset(**arrays, **further)
    return n_bytes(dataset, ("observations", "actions", "rewards", "masks", "ends", "after", "_rows")) / ROWS


def row_size(task: str, observation_space: spaces.Box, action_space: spaces.Box) -> RowSize:
    """Of the replay buffer that a model makes, and of data."""
    env = Spaces(observation_space, action_space)
    policy = "CnnPolicy" if task == IMAGES else "MlpPolicy"
    model = SACFlow(policy, env, buffer_size=ROWS, device="cpu")
    buffer = n_bytes(
        model.replay_buffer, ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    )
    action_dim = int(np.prod(action_space.shape))
    data = [data_bytes(observation_space, action_dim, compact) for compact in (False, True)]
    numbers = int(np.prod(observation_space.shape))
    return RowSize(task, numbers, action_dim, str(observation_space.dtype), buffer / ROWS, *data)


def model_size(name: str, ours: Ours) -> ModelSize:
    """Of a model that has made one update, so that Adam has its moments."""
    once = {"learning_starts": 1, "buffer_size": 100, "batch_size": 8, "device": "cpu", "seed": 0}
    model = ours.algorithm(ours.policy, **{"env": gym.make(MODEL_TASK), **once, **ours.arguments})
    model.learn(8)
    file = io.BytesIO()
    model.save(file)
    parameters = [sum(p.numel() for p in net.parameters()) for net in (model.actor, model.policy)]
    return ModelSize(name, MODEL_TASK, parameters[0], parameters[1], len(file.getvalue()))


def write(path: Path, rows: Sequence[RowSize] | Sequence[ModelSize]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0]._fields)
    writer.writerows(rows)
    write_text(path, text.getvalue())
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sizes"))
    args = parser.parse_args()
    register()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in TASKS:
        env = gym.make(task)
        assert isinstance(env.observation_space, spaces.Box)
        assert isinstance(env.action_space, spaces.Box)
        rows.append(row_size(task, env.observation_space, env.action_space))
    images = spaces.Box(0, 255, (3, 84, 84), np.uint8)
    rows.append(row_size(IMAGES, images, spaces.Box(-1.0, 1.0, (6,), np.float32)))
    write(args.out / "rows.csv", rows)
    write(args.out / "models.csv", [model_size(name, OURS[name]) for name in MODELS])
    (args.out / "sizes.jsonl").unlink(missing_ok=True)
    append_record(args.out / "sizes.jsonl", {"rows": ROWS, "model_task": MODEL_TASK})


if __name__ == "__main__":
    main()
