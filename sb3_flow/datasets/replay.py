"""Steps that a model has stored, as data for another."""

import warnings

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_flow.datasets.arrays import Array, jumps, scalable
from sb3_flow.datasets.dataset import OfflineDataset
from sb3_flow.datasets.errors import DataError
from sb3_flow.datasets.observations import Observations, each, length, parts

SOURCE = "the replay buffer"


def from_replay_buffer(buffer: ReplayBuffer) -> OfflineDataset:
    """What a replay buffer holds now, as copies: of any off-policy model of SB3 with continuous actions.

    Episodes stand behind each other, one environment's after the other's. They end where the buffer says so, where it
    ends, and where the next step begins elsewhere than the last one led, as after a second `learn` of SB3's models. The
    last is not seen with `optimize_memory_usage`, which keeps no observation twice.

    :param buffer: `model.replay_buffer`; of hindsight's the goals and rewards that the environment gave
    :raises DataError: if it is empty, or its actions are not continuous
    """
    space = scalable(SOURCE, buffer.action_space)
    # Where memory is saved the last observation stands in the oldest row
    first = buffer.pos + int(buffer.optimize_memory_usage) if buffer.full else 0
    steps = buffer.pos + buffer.buffer_size - first if buffer.full else buffer.pos
    if steps == 0:
        raise DataError(SOURCE, None, "it is empty; of a saved model load it, too, with load_replay_buffer")

    def stored(array: Array) -> Array:
        return _in_order(array, first, steps)

    observations = each(stored, buffer.observations)
    saves_memory = buffer.optimize_memory_usage
    after = _in_order(buffer.observations, first + 1, steps) if saves_memory else each(stored, buffer.next_observations)
    dones = stored(buffer.dones) == 1
    if not buffer.handle_timeout_termination and dones.any():
        warnings.warn(
            f"{SOURCE}: it does not tell time limits from terminal states (handle_timeout_termination=False), and all "
            "ends of episodes count as terminal.",
            stacklevel=2,
        )
    ends = dones | _jumps(observations, after)
    ends[steps - 1 :: steps] = True
    return OfflineDataset(
        observations,
        stored(buffer.actions).reshape(-1, *space.shape),
        stored(buffer.rewards),
        ~dones | (stored(buffer.timeouts) == 1),
        ends,
        after,
        source=SOURCE,
        scaled_by=space,
    )


def _in_order(array: Array, first: int, steps: int) -> Array:
    """Rows of a ring, (size, E, ...), as (E steps, ...): all of the first environment, then those of the next.

    :param first: row of the oldest step
    :param steps: how many there are
    """
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    size, n_envs = array.shape[:2]
    first %= size
    head = min(steps, size - first)
    flat = np.empty((n_envs, steps, *array.shape[2:]), dtype)
    with np.errstate(over="ignore"):  # the check of the data says where
        flat[:, :head] = array[first : first + head].swapaxes(0, 1)
        flat[:, head:] = array[: steps - head].swapaxes(0, 1)
    return flat.reshape(n_envs * steps, *array.shape[2:])


def _jumps(observations: Observations, after: Observations) -> NDArray[np.bool_]:
    """Whether the next row begins elsewhere than a step led."""
    found = np.zeros(length(after), np.bool_)
    for key, led in parts(after).items():
        for start, elsewhere in jumps(led, parts(observations)[key]):
            found[start : start + len(elsewhere)] |= elsewhere
    return found
