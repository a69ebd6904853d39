"""OGBench's manipulation tasks for reward-based learning, made fit for Gymnasium and SB3."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.common.checks import extra, require_choice

try:
    from ogbench.manipspace.envs.cube_env import CubeEnv
    from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
    from ogbench.manipspace.envs.scene_env import SceneEnv
except ImportError as error:
    raise ImportError(f"OGBench's environments need ogbench: {extra('ogbench')}") from error

Observation = NDArray[np.float32]

ACTIONS = 5  # moves along x, y and z, a turn about z, and the gripper


class SingleTaskEnv(gym.Env[Observation, NDArray[Any]]):
    """One of ogbench's tasks: reward minus the number of subgoals not reached, terminated by success.

    :param env_type: "single", "double", "triple" or "quadruple", the number of cubes; "scene"; or "3x3" or "4x4", the
        buttons of a puzzle
    :param reward_task_id: 1-5, or 0 for ogbench's default
    :param sparse: reward -1 until all subgoals are reached, however many are
    :param render_mode: "rgb_array", or None, which needs no OpenGL
    :param kwargs: of ogbench's class, e.g. `width` and `height` of the pictures, in pixels
    :raises ValueError: for another env_type
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own)

    def __init__(
        self,
        env_type: str,
        reward_task_id: int = 0,
        sparse: bool = False,
        render_mode: str | None = None,
        **kwargs: Any,
    ):
        require_choice("env_type", env_type, list(SIMULATIONS))
        self.sparse = sparse
        self.render_mode = render_mode
        # ogbench 1.2 takes "pre" for these tasks; the papers ran 1.1, which rewarded what an action had led to
        kwargs = {"success_timing": "post", "reward_task_id": reward_task_id} | kwargs
        if SIMULATIONS[env_type] is not _Puzzle:
            kwargs.setdefault("permute_blocks", False)
        self.simulation: Any = SIMULATIONS[env_type](env_type=env_type, **kwargs)
        observation, _ = self.reset()
        self.observation_space = spaces.Box(-np.inf, np.inf, observation.shape, np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; a seed determines it."""
        super().reset(seed=seed)
        observation, info = self.simulation.reset(seed=seed, options=options)
        return observation.astype(np.float32), info | {"is_success": False}

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step of 50 ms; `info["is_success"]` says whether the goal is reached."""
        observation, reward, terminated, truncated, info = self.simulation.step(action)
        info["is_success"] = bool(info["success"])
        reward = -float(reward != 0) if self.sparse else float(reward)
        return observation.astype(np.float32), reward, bool(terminated), bool(truncated), info

    def render(self) -> NDArray[np.uint8] | None:
        """A picture of (height, width, 3) bytes."""
        if self.render_mode is None:
            gym.logger.warn('Nothing can be drawn: make the environment with render_mode="rgb_array".')
            return None
        picture: NDArray[np.uint8] = self.simulation.render()
        return picture

    def close(self) -> None:
        """Free the renderer."""
        if self.simulation._renderer is not None:
            self.simulation._renderer.close()
            self.simulation._renderer = None


class _Actions:
    """ogbench draws actions when it resets: unseeded, and from a space about whose precision Gymnasium warns."""

    np_random: np.random.Generator

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32, seed=self.np_random)


class _Cube(_Actions, CubeEnv):  # type: ignore[misc]
    pass


class _Scene(_Actions, SceneEnv):  # type: ignore[misc]
    pass


class _Puzzle(_Actions, PuzzleEnv):  # type: ignore[misc]
    pass


SIMULATIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("single", "double", "triple", "quadruple"), _Cube),
    "scene": _Scene,
    **dict.fromkeys(("3x3", "4x4"), _Puzzle),
}
