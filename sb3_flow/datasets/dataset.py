"""Offline data as plain arrays indexed by row, checked once, and the same for sets too large for memory."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.common.checks import require, require_integer
from sb3_flow.datasets.arrays import (
    BOUNDS,
    Array,
    action_bounds,
    bounded_actions,
    check_shape,
    flag_array,
    float_array,
    jumps,
)
from sb3_flow.datasets.errors import DataError, HorizonError, missing_array
from sb3_flow.datasets.observations import (
    Dtypes,
    Observations,
    Shapes,
    check_alike,
    checked_observations,
    dtypes,
    each,
    full_name,
    gathered,
    length,
    parts,
    read_only,
    shapes,
    taken,
)

SMALL_FILE = 10_000  # steps; below it is an episode or a few, and no part of data that are too large for memory
MOSTLY = 0.9  # share of terminal states from which on masks look turned around
ARRAY_KEYS = ("observations", "actions", "rewards", "masks", "terminals", "next_observations", "valids")


class OfflineDataset:
    """Steps of an environment, one a row, the rows of an episode together and in order. Read-only.

    There are two layouts. In one, every row is a step and `next_observations` is an array of its own. In the other,
    the observation after a step is the one of the following row, and an episode of T steps has T + 1 rows: the last
    only holds the final observation and is no step. It needs half the memory. Either way: draw steps, not rows
    (`rows(numpy.random.randint(len(dataset), size=B))`), and index the arrays with rows.

    :param observations: (N, ...) float32, or uint8 for images; a dict of such for a Dict space
    :param actions: (N, d) in [-1, 1]; up to 1e-3 outside is clipped. (N, ...) is flattened
    :param rewards: (N,)
    :param masks: (N,): 1 to bootstrap from the next observation, else 0; play data go on after a 0, so it ends nothing
    :param ends: (N,): 1 at the last step of every episode, terminated or not
    :param next_observations: as the observations, or None if they are those of the following rows
    :param is_step: (N,): 0 in rows that only hold an episode's final observation; None: every row is a step
    :param source: the file, or what else to name in errors
    :param names: names of these parameters in the source, where they differ
    :param action_limit: actions are clipped to +-action_limit <= 1
    :param scaled_by: a space by whose bounds the actions were scaled to [-1, 1]; None if nobody knows
    :raises DataError: naming source, array and row
    """

    def __init__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        masks: Any,
        ends: Any,
        next_observations: Any = None,
        is_step: Any = None,
        *,
        source: str | Path = "the dataset",
        names: Mapping[str, str] | None = None,
        action_limit: float = 1.0,
        scaled_by: "spaces.Box[Any] | None" = None,
    ):
        self.scaled_by = scaled_by
        self.source = source
        self._names = {} if names is None else names
        self.observations = checked_observations(source, self._name("observations"), observations)
        rows = length(self.observations)
        self.actions = bounded_actions(source, self._name("actions"), actions, action_limit)
        self.action_shape: tuple[int, ...] = self.actions.shape[1:]
        if len(self.action_shape) > 1:
            self.actions = self.actions.reshape(len(self.actions), -1)
        check_shape(source, self._name("actions"), self.actions, (rows, None))
        self.rewards = float_array(source, self._name("rewards"), rewards)
        check_shape(source, self._name("rewards"), self.rewards, (rows,))
        self.masks = flag_array(source, self._name("masks"), masks, rows).astype(np.float32)
        self.ends = flag_array(source, self._name("ends"), ends, rows)
        self.after: Observations | None = None  # None: the observation after a step is the following row's
        if next_observations is not None:
            self.after = checked_observations(source, self._name("next_observations"), next_observations)
            check_alike(source, self._name("next_observations"), self.after, self.observations)
        steps = np.ones(rows, dtype=np.bool_)
        if is_step is not None:
            steps = flag_array(source, self._name("is_step"), is_step, rows)
        self._check_episodes(steps)
        # Where every row is a step, no table is needed
        self._rows = None if steps.all() else np.flatnonzero(steps).astype(np.int32 if rows < 2**31 else np.int64)
        self._steps = int(steps.sum())
        self._warn_of_terminal_states(int(np.count_nonzero(self.masks[steps] == 0)))
        for name in ("observations", "actions", "rewards", "masks", "ends", "after", "_rows"):
            if getattr(self, name) is not None:
                setattr(self, name, each(read_only, getattr(self, name)))

    def __len__(self) -> int:
        """Number of steps."""
        return self._steps

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._steps} steps, {self.n_episodes} episodes, "
            f"observations {self.observation_shape}, actions {self.action_dim}, from {self.source})"
        )

    @property
    def n_episodes(self) -> int:
        """Number of episodes with at least one step."""
        return int(np.count_nonzero(self.ends if self._rows is None else self.ends[self._rows]))

    @property
    def observation_shape(self) -> Shapes:
        """Shape of one observation, of a dict by key."""
        return shapes(self.observations)

    @property
    def observation_dtype(self) -> Dtypes:
        """float32, or uint8 for images; of a dict by key."""
        return dtypes(self.observations)

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return int(self.actions.shape[1])

    def rows(self, steps: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """Rows of steps, which are counted without the rows that are none.

        :param steps: numbers in 0 .. len(self) - 1
        """
        return steps if self._rows is None else self._rows[steps]

    def chunk_rows(self, starts: NDArray[np.integer[Any]], horizon: int) -> NDArray[np.integer[Any]]:
        """The rows of `horizon` consecutive steps; what follows an episode's end must be masked by `ends`.

        :param starts: (B,) rows, of steps
        :param horizon: steps a chunk
        :return: (B, horizon), repeating the last row where the data end
        """
        return np.minimum(starts[:, None] + np.arange(horizon), len(self.ends) - 1)

    def observations_at(self, rows: NDArray[np.integer[Any]]) -> Observations:
        """Observations before the steps in some rows, as a copy."""
        return taken(self.observations, rows)

    def next_observations(self, rows: NDArray[np.integer[Any]]) -> Observations:
        """Observations after the steps in some rows, as a copy."""
        return taken(self.observations, rows + 1) if self.after is None else taken(self.after, rows)

    def at(self, update: int) -> "OfflineDataset":
        """The data that an update samples from: all of them. See `ShardedDataset.at`.

        :param update: number of the update
        """
        return self

    def check_chunks(self, horizon: int) -> None:
        """Refuse data from which no chunks can be drawn, or chunks of steps that do not follow each other.

        :param horizon: steps a chunk
        :raises DataError: if every episode is shorter and none terminates, or one goes on somewhere else than where its
            last step led
        """
        if horizon == 1:
            return
        rows = self.rows(np.arange(len(self)))
        ends = np.flatnonzero(self.ends[rows])
        longest = int(np.diff(ends, prepend=-1).max())
        if longest < horizon and self.masks[rows].all():  # a chunk that terminates is complete
            problem = f"the longest episode has {longest} steps; horizon_length={horizon} needs one of {horizon}"
            raise HorizonError(self.source, self._name("ends"), problem)
        if self.after is None:
            return
        goes_on = np.zeros_like(self.ends)
        goes_on[rows] = ~self.ends[rows]
        for key, after in parts(self.after).items():
            self._check_goes_on(key, parts(self.observations)[key], after, goes_on)

    def _check_goes_on(self, key: str, observations: Array, after: Array, goes_on: NDArray[np.bool_]) -> None:
        for start, elsewhere in jumps(after, observations):
            bad = elsewhere & goes_on[start : start + len(elsewhere)]
            if bad.any():
                problem = (
                    f"they differ from the next row's observations, but {self._name('ends')} does not mark an "
                    "episode's end here; mark where time limits cut episodes, too, or use horizon_length=1"
                )
                name = full_name("next_observations", key)
                raise HorizonError(self.source, name, problem, start + int(bad.argmax()))

    def _warn_of_terminal_states(self, n_terminal: int) -> None:
        if n_terminal > MOSTLY * self._steps:
            name = self._name("masks")
            warnings.warn(
                f"{self.source}: {name} are 0 in {n_terminal} of {self._steps} steps, which makes these terminal: "
                f"nothing after them counts. Where an episode goes on, {name} are 1.",
                stacklevel=3,
            )

    def _name(self, parameter: str) -> str:
        return self._names.get(parameter, parameter)

    def _check_episodes(self, steps: NDArray[np.bool_]) -> None:
        """Refuse steps after which it is not known whether and where the episode goes on."""
        if not steps.any():
            raise DataError(self.source, None, "it has no steps")
        next_is_step = np.append(steps[1:], False)
        endless = steps & ~self.ends & ~next_is_step
        if endless.any():
            raise DataError(
                self.source,
                self._name("ends"),
                "here the data stop, but the episode never ends: mark its last step",
                int(endless.argmax()),
            )
        if self.after is None:
            # Without a bootstrap any row may follow, but in the last row there is none
            unknown = steps & self.ends & next_is_step & (self.masks == 1)
            unknown[-1] |= steps[-1]
            if unknown.any():
                raise DataError(
                    self.source,
                    self._name("ends"),
                    "the row after an episode's last step must hold its final observation, and be no step; or give "
                    "next_observations",
                    int(unknown.argmax()),
                )


class Extent(NamedTuple):
    """What is known of a file without reading all of it."""

    steps: int
    observation_shape: Shapes
    observation_dtype: Dtypes  # float32, or uint8 for images
    action_dim: int


class ShardedDataset:
    """Files too large to be in memory together: one is resident and takes turns, the next is read in the background.

    Which one is resident depends only on the number of the update, so a resumed run goes on with the same data.

    :param paths: the files, in the order of their turns
    :param load: reads one
    :param measure: its extent, without reading all of it
    :param rotate_every: updates a turn
    :raises ValueError: if there is no file, or one is bad
    """

    def __init__(
        self,
        paths: Sequence[Path],
        load: Callable[[Path], OfflineDataset],
        measure: Callable[[Path], Extent],
        rotate_every: int = 1000,
    ):
        require(len(paths) > 0, "paths", list(paths), "a sharded dataset needs at least one file")
        require_integer("rotate_every", rotate_every)
        self.paths = list(paths)
        self.rotate_every = rotate_every
        self._load = load
        extents = [measure(path) for path in self.paths]
        self._steps = sum(extent.steps for extent in extents)
        self._warn_of_small_files()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard")
        self._ahead: tuple[int, Future[OfflineDataset]] | None = None
        self._index = 0
        self._resident: OfflineDataset | None = load(self.paths[0])
        self.source = self.paths[0].parent
        self.observation_shape = self._resident.observation_shape
        self.observation_dtype = self._resident.observation_dtype
        self.action_dim = self._resident.action_dim
        self.action_shape = self._resident.action_shape
        for path, extent in zip(self.paths, extents, strict=True):
            self._check_extent(path, extent)
        self._horizon = 1
        self._read_ahead()

    def __len__(self) -> int:
        """Number of steps in all files together."""
        return self._steps

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._steps} steps in {len(self.paths)} files, from {self.source})"

    def at(self, update: int) -> OfflineDataset:
        """The file whose turn it is. Keep no reference beyond the update, or a third file stays in memory.

        :param update: number of the update, from 0; any order is allowed, rising is fast
        :raises ValueError: if the file is bad
        """
        index = update // self.rotate_every % len(self.paths)
        if index != self._index or self._resident is None:
            # Before the next one is read: it must be gone by then
            self._resident = None
            shard = self._take(index)
            shard.check_chunks(self._horizon)
            self._resident, self._index = shard, index
            self._read_ahead()
        return self._resident

    def _warn_of_small_files(self) -> None:
        """Point out a folder of single episodes: for `rotate_every` updates all batches would be of one of them."""
        average = self._steps // len(self.paths)
        if average < SMALL_FILE:
            warnings.warn(
                f"{self.paths[0].parent}: its {len(self.paths)} files of {average} steps on average take turns, each "
                f"for {self.rotate_every} updates. That is made for data that do not fit into memory: join small "
                "files, with numpy.concatenate of each array (docs/own_data.md).",
                stacklevel=2,
            )

    def _take(self, index: int) -> OfflineDataset:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            number, future = ahead
            if number == index:
                return future.result()
            # Whatever became of it: it must be gone before another is read
            future.exception()
            del ahead, future
        return self._load(self.paths[index])

    def _read_ahead(self) -> None:
        if len(self.paths) > 1:
            index = (self._index + 1) % len(self.paths)
            self._ahead = index, self._reader.submit(self._load, self.paths[index])

    def check_chunks(self, horizon: int) -> None:
        """As `OfflineDataset.check_chunks`, of the resident file now and of the others when their turn comes."""
        self._horizon = horizon
        self.at(self._index * self.rotate_every).check_chunks(horizon)

    def _check_extent(self, path: Path, extent: Extent) -> None:
        for name in ("observation_shape", "observation_dtype", "action_dim"):
            ours, first = getattr(extent, name), getattr(self, name)
            if ours != first:
                raise DataError(path, None, f"its {name} is {ours}, that of {self.paths[0].name} {first}")


Dataset = OfflineDataset | ShardedDataset


def from_arrays(
    arrays: Mapping[str, Any], source: str | Path = "the dataset", action_limit: float = 1.0
) -> OfflineDataset:
    """A dataset from arrays under OGBench's names.

    :param arrays: observations (N, ...), of a Dict space a dict of such, or each under observations/<key>, actions
        (N, d), rewards (N,), masks (N,), terminals (N,), which mark where a trajectory ends and not whether to
        bootstrap, and one of next_observations, as the observations, and valids (N,): with valids, OGBench's compact
        form, the next observation is the following row's, rows with 0 are no steps. Of actions that were scaled
        action_low and action_high (d,) may say from where: an environment with other bounds is refused then
    :param source: what to name in errors
    :param action_limit: actions are clipped to +-action_limit <= 1
    :raises DataError: for a missing key or bad data
    """
    names, arrays = list(arrays), gathered(source, arrays, (*ARRAY_KEYS, *BOUNDS))
    for key in ARRAY_KEYS[:5]:
        if key not in arrays:
            raise missing_array(source, key, names)
    if ("next_observations" in arrays) == ("valids" in arrays):
        problem = "give it, the observation after each row's action, or valids (OGBench's compact form), and not both"
        raise DataError(source, "next_observations", problem)
    bounds = {key: arrays[key] for key in BOUNDS if key in arrays}
    return OfflineDataset(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        arrays["masks"],
        arrays["terminals"],
        arrays.get("next_observations"),
        arrays.get("valids"),
        source=source,
        names={"ends": "terminals", "is_step": "valids"},
        action_limit=action_limit,
        scaled_by=action_bounds(source, bounds, np.shape(arrays["actions"])[1:]),
    )
