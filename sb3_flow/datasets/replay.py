"""Steps that a model has stored, as data for another."""

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_flow.datasets.arrays import Array, blocks, scalable
from sb3_flow.datasets.dataset import OfflineDataset
from sb3_flow.datasets.errors import DataError
from sb3_flow.datasets.observations import Observations, each, parts

SOURCE = "the replay buffer"


def from_replay_buffer(buffer: ReplayBuffer) -> OfflineDataset:
    """What a replay buffer holds now, as copies: of any off-policy model of SB3 with continuous actions.

    Episodes stand behind each other, one environment's after the other's. They end where the buffer says so, where it
    ends, and where the next step begins elsewhere than the last one led, as after a second `learn` of SB3's models.

    :param buffer: `model.replay_buffer`; of hindsight's the goals and rewards that the environment gave
    :raises DataError: if it is empty, or its actions are not continuous
    """
    space = scalable(SOURCE, buffer.action_space)
    steps = _steps(buffer)
    if len(steps) == 0:
        raise DataError(SOURCE, None, "it is empty; of a saved model load it, too, with load_replay_buffer")

    def stored(array: Array) -> Array:
        return _by_environment(array, steps)

    observations = each(stored, buffer.observations)
    after = each(stored, _next(buffer))
    dones = stored(buffer.dones) == 1
    ends = dones | _jumps(observations, after)
    ends[len(steps) - 1 :: len(steps)] = True
    return OfflineDataset(
        observations,
        stored(buffer.actions).reshape(-1, *space.shape),
        stored(buffer.rewards),
        ~dones | (stored(buffer.timeouts) == 1),
        ends,
        after,
        source=SOURCE,
        were_scaled=True,
    )


def _steps(buffer: ReplayBuffer) -> NDArray[np.int64]:
    """Rows of the buffer, the oldest first."""
    if not buffer.full:
        return np.arange(buffer.pos)
    # Where memory is saved the last observation stands in the oldest row
    oldest = buffer.pos + int(buffer.optimize_memory_usage)
    return np.arange(oldest, buffer.pos + buffer.buffer_size) % buffer.buffer_size


def _next(buffer: ReplayBuffer) -> Observations:
    if buffer.optimize_memory_usage:
        return np.roll(buffer.observations, -1, axis=0)
    return buffer.next_observations


def _by_environment(array: Array, steps: NDArray[np.int64]) -> Array:
    """(rows, E, ...) to (E steps, ...): all steps of the first environment, then those of the next."""
    n_envs = array.shape[1]
    flat = np.empty((n_envs * len(steps), *array.shape[2:]), array.dtype)
    for i in range(n_envs):
        np.take(array[:, i], steps, axis=0, out=flat[i * len(steps) : (i + 1) * len(steps)])
    return flat


def _jumps(observations: Observations, after: Observations) -> NDArray[np.bool_]:
    """Whether the next row begins elsewhere than a step led."""
    jumps = np.zeros(len(next(iter(parts(after).values()))), np.bool_)
    for key, led in parts(after).items():
        begun = parts(observations)[key]
        for start, block in blocks(led[:-1]):
            stop = start + len(block)
            jumps[start:stop] |= (block != begun[start + 1 : stop + 1]).reshape(len(block), -1).any(axis=1)
    return jumps
