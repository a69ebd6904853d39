"""Robomimic's low-dimensional tasks, built by robosuite as the data's own environments were."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.common.checks import extra, require, require_choice
from sb3_flow.datasets.arrays import STEP_REWARD
from sb3_flow.datasets.robomimic import ENVIRONMENTS, OBSERVATION_KEYS, read_env_args

try:
    import mujoco
    import robosuite
except ImportError as error:
    raise ImportError(f"Robomimic's environments need robosuite: {extra('robomimic')}") from error

Observation = NDArray[np.float32]

OBJECT = "object-state"  # robosuite's name of robomimic's "object"
CAMERA = "agentview"
VISUAL_ONLY = mujoco.MjvOption()
VISUAL_ONLY.geomgroup[0] = 0  # collision shapes
# What the official files of robosuite 1.5 say, in their words; at 20 Hz an action of 1 asks for 5 cm or 0.5 rad
ENV_KWARGS: dict[str, Any] = {
    "robots": ["Panda"],
    "control_freq": 20,
    "reward_shaping": False,
    "controller_configs": {
        "type": "BASIC",
        "body_parts": {
            "right": {
                "type": "OSC_POSE",
                "input_max": 1,
                "input_min": -1,
                "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
                "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
                "kp": 150,
                "damping": 1,
                "impedance_mode": "fixed",
                "kp_limits": [0, 300],
                "damping_limits": [0, 10],
                "position_limits": None,
                "orientation_limits": None,
                "uncouple_pos_ori": True,
                "control_delta": True,
                "interpolation": None,
                "ramp_ratio": 0.2,
                "input_ref_frame": "world",
                "gripper": {"type": "GRIP"},
            }
        },
    },
}


class LowDimEnv(gym.Env[Observation, NDArray[Any]]):
    """One of robosuite's tasks: reward -1 a step, terminated by success.

    :param task: "lift", "can" or "square"
    :param render_mode: "rgb_array", or None, which needs no OpenGL
    :param env_args: an HDF5 file, to build the environment that its demonstrations say they come from; None builds that
        of the official data for robosuite 1.5
    :param width: of the pictures, in pixels
    :param height: of the pictures, in pixels
    :raises ValueError: for another task, and for a file of another task or without env_args
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own)

    def __init__(
        self,
        task: str,
        render_mode: str | None = None,
        env_args: str | Path | None = None,
        width: int = 256,
        height: int = 256,
    ):
        require_choice("task", task, list(ENVIRONMENTS))
        self.render_mode = render_mode
        self.size = {"width": width, "height": height}
        self._renderer: mujoco.Renderer | None = None
        #: What robosuite builds the simulation with; robomimic keeps it in files as env_args["env_kwargs"]
        self.env_kwargs = _env_kwargs(task, env_args) | {
            "use_object_obs": True,
            "use_camera_obs": False,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "renderer": "mujoco",
            # The files say False; True is 1.4 times as fast, and no bit of an observation differs
            "lite_physics": True,
            # Gymnasium's time limit ends episodes
            "ignore_done": True,
            # Compiling the scene anew takes 100 times as long as a reset and changes but the size of Lift's cube
            "hard_reset": False,
            # That size is drawn here, once: without a seed, environments would differ
            "seed": 0,
        }
        self.simulation: Any = robosuite.make(ENVIRONMENTS[task], **self.env_kwargs)
        self._continue_from_own_generator()
        observation, _ = self.reset()
        self.observation_space = spaces.Box(-np.inf, np.inf, observation.shape, np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.simulation.action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; a seed determines it."""
        super().reset(seed=seed)
        if seed is not None:
            self._continue_from_own_generator()
        self.simulation.reset()
        return self._observe(), {"is_success": False}

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step of 50 ms; `info["is_success"]` says whether the task is done."""
        self.simulation.step(np.asarray(action, dtype=np.float64))
        observation = self._observe()
        success = bool(self.simulation._check_success())
        return observation, STEP_REWARD, success, False, {"is_success": success}

    def render(self) -> NDArray[np.uint8] | None:
        """A picture of (height, width, 3) bytes."""
        if self.render_mode is None:
            gym.logger.warn('Nothing can be drawn: make the environment with render_mode="rgb_array".')
            return None
        # Not robosuite's own: with several environments it draws into whichever OpenGL context is current
        sim = self.simulation.sim
        if self._renderer is None:
            self._renderer = mujoco.Renderer(sim.model._model, **self.size)
        self._renderer.update_scene(sim.data._data, CAMERA, VISUAL_ONLY)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free the renderer and the simulation."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.simulation.close()

    def _continue_from_own_generator(self) -> None:
        # Robot and placement samplers keep references to robosuite's generator, so it must stay the same object
        self.simulation.rng.bit_generator.state = self.np_random.bit_generator.state

    def _observe(self) -> Observation:
        """The observation of the simulator's state, as in the data; robosuite's own lags by one of 25 substeps."""
        self.simulation.sim.forward()
        parts = self.simulation._get_observations(force_update=True)
        keys = [OBJECT if key == "object" else key for key in OBSERVATION_KEYS]
        return np.concatenate([parts[key] for key in keys], dtype=np.float32)


def _env_kwargs(task: str, path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return ENV_KWARGS
    env_args = read_env_args(path)
    name = env_args.get("env_name")
    require(name == ENVIRONMENTS[task], "env_args", str(path), f"its demonstrations are of {name!r}, not of {task!r}")
    kwargs: dict[str, Any] = env_args["env_kwargs"]
    return kwargs
