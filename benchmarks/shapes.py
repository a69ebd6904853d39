"""An environment of which only the spaces are used."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Shapes(gym.Env[Any, Any]):
    """Unbounded observations, actions in [-1, 1].

    :param obs: numbers in an observation
    :param actions: numbers in an action
    """

    def __init__(self, obs: int, actions: int):
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)
