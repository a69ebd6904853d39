"""Gymnasium ids under the papers' names; nothing of a suite is imported before one of its environments is made."""

from typing import Any

import gymnasium as gym

from sb3_flow.datasets.robomimic import ENVIRONMENTS

SINGLE_TASK, LOW_DIM = "sb3_flow.envs.ogbench:SingleTaskEnv", "sb3_flow.envs.robomimic:LowDimEnv"
# Name of the data: ogbench's env_type, and its time limit
OGBENCH = {
    "cube-single-play": ("single", 200),
    "cube-double-play": ("double", 500),
    "cube-triple-play": ("triple", 1000),
    "cube-quadruple-play": ("quadruple", 1000),
    "cube-quadruple-play-100m": ("quadruple", 1000),
    "scene-play": ("scene", 750),
}
DEFAULT_TASK = 0  # ogbench's number for the one that it chose
TASKS = {"": DEFAULT_TASK} | {f"-task{number}": number for number in range(1, 6)}
HORIZONS = {"lift": 300, "can": 300, "square": 400}


def register() -> None:
    """Register all ids; those that Gymnasium knows already stay as they are."""
    for name, (env_type, limit) in OGBENCH.items():
        for suffix, number in TASKS.items():
            kwargs = {"env_type": env_type, "reward_task_id": number}
            _register(f"{name}-singletask{suffix}-v0", SINGLE_TASK, limit, kwargs)
    for task in ENVIRONMENTS:
        for kind in ("mh", "ph"):
            _register(f"{task}-{kind}-low_dim-v0", LOW_DIM, HORIZONS[task], {"task": task})


def _register(env_id: str, entry_point: str, max_episode_steps: int, kwargs: dict[str, Any]) -> None:
    if env_id not in gym.registry:
        gym.register(env_id, entry_point, max_episode_steps=max_episode_steps, kwargs=kwargs)


register()
