"""Gymnasium ids under the papers' names; nothing of a suite is imported before one of its environments is made."""

from itertools import product
from typing import Any

import gymnasium as gym

from sb3_flow.datasets.robomimic import ENVIRONMENTS

SINGLE_TASK, LOW_DIM = "sb3_flow.envs.ogbench:SingleTaskEnv", "sb3_flow.envs.robomimic:LowDimEnv"
# Name of the scene: ogbench's env_type, its time limit, and whether the papers run it with sparse rewards as well
OGBENCH = {
    "cube-single": ("single", 200, False),
    "cube-double": ("double", 500, False),
    "cube-triple": ("triple", 1000, False),
    "cube-quadruple": ("quadruple", 1000, False),
    "scene": ("scene", 750, True),
    "puzzle-3x3": ("3x3", 500, True),
    "puzzle-4x4": ("4x4", 500, True),
}
LARGE = ("cube-quadruple", "puzzle-4x4")  # have data of 100 million steps, too
DEFAULT_TASK = 0  # ogbench's number for the one that it chose
TASKS = {"": DEFAULT_TASK} | {f"-task{number}": number for number in range(1, 6)}
HORIZONS = {"lift": 300, "can": 300, "square": 400}


def register() -> None:
    """Register all ids; those that Gymnasium knows already stay as they are."""
    for scene, (env_type, limit, has_sparse) in OGBENCH.items():
        kinds = ["play", "play-100m"] if scene in LARGE else ["play"]
        rewards = {"": False, "-sparse": True} if has_sparse else {"": False}
        for (reward, sparse), kind, (suffix, number) in product(rewards.items(), kinds, TASKS.items()):
            kwargs = {"env_type": env_type, "reward_task_id": number, "sparse": sparse}
            _register(f"{scene}{reward}-{kind}-singletask{suffix}-v0", SINGLE_TASK, limit, kwargs)
    for task in ENVIRONMENTS:
        for kind in ("mh", "ph"):
            _register(f"{task}-{kind}-low_dim-v0", LOW_DIM, HORIZONS[task], {"task": task})


def _register(env_id: str, entry_point: str, max_episode_steps: int, kwargs: dict[str, Any]) -> None:
    if env_id not in gym.registry:
        gym.register(env_id, entry_point, max_episode_steps=max_episode_steps, kwargs=kwargs)


register()
