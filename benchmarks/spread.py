"""How far apart the actions are that a stochastic policy takes in one state."""

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

STATES, SAMPLES = 2_000, 16


def action_spread(model: Any) -> float:
    """Standard deviation of a number of the stochastic policy's action over its noise, a mean over states.

    :param model: the states are from its offline data, or without these from its replay buffer or last rollout
    """
    states = some_states(model, np.random.default_rng(0))
    with th.random.fork_rng():  # the training's own noise stays what it was
        th.manual_seed(0)
        actions = np.stack([model.predict(states)[0] for _ in range(SAMPLES)])
    return float(actions.std(axis=0, ddof=1).mean())


def some_states(model: Any, rng: np.random.Generator) -> NDArray[Any]:
    """States that a model has learned from, as its policy sees them, (2000, ...).

    :param model: of vectors, which Dict observations are not
    :param rng: chooses them
    """
    dataset = getattr(model, "_dataset", None)
    if dataset is None and isinstance(model, OnPolicyAlgorithm):
        stored: Any = model.rollout_buffer.observations  # normalised as they were then
        if isinstance(stored, dict):
            (stored,) = stored.values()
        stored = stored.reshape(-1, *(model.observation_space.shape or ()))  # steps and environments in one
        return np.asarray(stored[rng.integers(len(stored), size=STATES)])
    if dataset is not None:
        data = dataset.at(0)
        states = data.observations[data.rows(rng.integers(len(data), size=STATES))]
    else:
        stored = model.replay_buffer.observations[: model.replay_buffer.size()]
        states = stored[rng.integers(len(stored), size=STATES), rng.integers(stored.shape[1])]
    normalize = model.get_vec_normalize_env()
    return np.asarray(states if normalize is None else normalize.normalize_obs(states))
