"""What is in LeRobot's files: tables of frames, and cameras as images in them or as videos beside them."""

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_flow.common.checks import extra
from sb3_flow.datasets.arrays import Array, check_dtype
from sb3_flow.datasets.errors import DataError, missing_array, missing_file, reading

INFO = Path("meta") / "info.json"
FORMATS = ("v2.", "v3.")
IMAGE, VIDEO = "image", "video"
CHANNELS = {1: "gray", 3: "rgb24"}


class Clip(NamedTuple):
    """An episode in a file of videos."""

    frames: NDArray[np.intp]  # (T,) numbers of the dataset's frames
    starts: float  # seconds


class Recording:
    """A dataset's frames, episode after episode, whatever the order of the files.

    :param path: a directory with meta/info.json
    :raises ValueError: if it is damaged, incomplete, or of another format
    :raises FileNotFoundError: if there is none
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / INFO).is_file():
            raise missing_file("LeRobot's data", [path / INFO], "Give the directory that has meta and data in it.")
        with reading(path / INFO):
            self._info = json.loads((path / INFO).read_text())
            self.features: dict[str, dict[str, Any]] = dict(self._info["features"])
            self._fps = float(self._info["fps"])
            version = str(self._info["codebase_version"])
        if not version.startswith(FORMATS):
            problem = f"it is {version}; formats 2 and 3 can be read, and LeRobot has scripts that convert older ones"
            raise DataError(path / INFO, "codebase_version", problem)
        self._parquet = _import_parquet()
        self._tables = sorted((path / "data").rglob("*.parquet"))
        episode, frame = (self._stored(key).astype(np.int64).reshape(-1) for key in ("episode_index", "frame_index"))
        self._order = np.lexsort((frame, episode))  # (N,) which stored frame each is
        self.episode: NDArray[np.int64] = episode[self._order]  # (N,)
        self.last: NDArray[np.bool_] = np.append(self.episode[1:] != self.episode[:-1], True)[: len(episode)]  # (N,)
        self._frame = frame[self._order]
        self._check_complete()

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.episode)

    def is_camera(self, key: str) -> bool:
        """Whether a column holds pictures."""
        return self._feature(key).get("dtype") in (IMAGE, VIDEO)

    def numbers(self, key: str) -> Array:
        """A column of the tables, (N, ...)."""
        array = self._stored(key)
        self._check_rows(key, len(array))
        ordered: Array = array[self._order]
        return ordered

    def pictures(self, key: str, shape: tuple[int, ...] | None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The pictures of a camera, each with the number of its frame, in the order of the files.

        :param key: the camera's column
        :param shape: (channels, height, width) to bring them to, by area averages; None for colours in their own size
        """
        if shape is not None and shape[0] not in CHANNELS:
            problem = f"a picture has 1 or 3 channels, but {shape[0]} are wanted of it; frames are not stacked here"
            raise DataError(self.path, key, problem)
        feature = self._feature(key)
        if any(value is True and name.endswith("is_depth_map") for name, value in feature.get("info", {}).items()):
            raise DataError(self.path, key, "it holds depths, which are not read; only pictures are")
        if feature["dtype"] == IMAGE:
            yield from self._images(key, shape)
            return
        for path, clips in self._videos(key):
            yield from self._video(path, clips, shape)

    def _feature(self, key: str) -> dict[str, Any]:
        if key not in self.features:
            raise missing_array(self.path, key, self.features)
        return self.features[key]

    def _stored(self, key: str) -> Array:
        """A column in the order of the files."""
        self._feature(key)
        if not self._tables:
            raise DataError(self.path / "data", key, "there are no .parquet files; is the dataset complete?")
        with reading(self.path, key):
            columns = [_numbers(self.path, key, self._read(table, key)) for table in self._tables]
            # An empty one does not know of how many numbers its rows are
            array: Array = np.concatenate([column for column in columns if len(column) > 0] or columns[:1])
        return array

    def _read(self, table: Path, key: str) -> Any:
        """A column of one table, as Arrow's."""
        with reading(table, key), self._parquet.ParquetFile(table) as file:
            return file.read(columns=[key]).column(key)

    def _check_complete(self) -> None:
        for name, found in (("total_frames", len(self)), ("total_episodes", int(self.last.sum()))):
            stated = self._info.get(name, found)
            if stated != found:
                raise DataError(
                    self.path / INFO, name, f"it is {stated}, but there are {found}; is the dataset complete?"
                )
        if len(self) == 0:
            raise DataError(self.path, "data", "it has no frames")
        starts = np.flatnonzero(np.append(True, self.last[:-1]))
        expected = np.arange(len(self)) - starts[np.cumsum(self.last) - self.last]
        if (self._frame != expected).any():
            row = int((self._frame != expected).argmax())
            problem = f"frame {expected[row]} of episode {self.episode[row]} is missing, or another is there twice"
            raise DataError(self.path, "frame_index", problem)

    def _check_rows(self, key: str, rows: int) -> None:
        if rows != len(self):
            raise DataError(self.path, key, f"it has {rows} rows, but there are {len(self)} frames")

    def _images(self, key: str, shape: tuple[int, ...] | None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Pictures in the tables."""
        av = _import_av()
        numbers = np.argsort(self._order)  # of the stored frames
        start = 0
        for table in self._tables:
            column = self._read(table, key)
            for number, stored in zip(numbers[start:], column, strict=False):
                with reading(table, key), av.open(io.BytesIO(stored.as_py()["bytes"])) as container:
                    picture = _picture(next(container.decode(video=0)), shape)
                yield int(number), picture
            start += len(column)
        self._check_rows(key, start)

    def _videos(self, key: str) -> Iterator[tuple[Path, list[Clip]]]:
        """The videos of a camera, and which episodes are in each."""
        starts = np.flatnonzero(np.append(True, self.last[:-1]))
        frames = {int(self.episode[rows[0]]): rows for rows in np.split(np.arange(len(self)), starts[1:])}
        files: dict[Path, list[Clip]] = defaultdict(list)
        template = str(self._info["video_path"])
        for episode, where, begin in self._places(key, sorted(frames)):
            files[self.path / template.format(video_key=key, **where)].append(Clip(frames[episode], begin))
        for path, clips in files.items():
            yield path, sorted(clips, key=lambda clip: clip.starts)

    def _places(self, key: str, episodes: list[int]) -> Iterator[tuple[int, dict[str, int], float]]:
        """Where the video of each episode is, and at which second of it the episode begins."""
        if str(self._info["codebase_version"]).startswith("v2."):
            size = int(self._info.get("chunks_size", 1000))
            for episode in episodes:
                yield episode, {"episode_chunk": episode // size, "episode_index": episode}, 0.0
            return
        names = ("chunk_index", "file_index", "from_timestamp")
        found = {}
        for table in sorted((self.path / "meta" / "episodes").rglob("*.parquet")):
            columns = [
                self._read(table, name) for name in ("episode_index", *(f"videos/{key}/{name}" for name in names))
            ]
            for episode, *place in zip(*(column.to_pylist() for column in columns), strict=True):
                found[episode] = place
        for episode in episodes:
            if episode not in found:
                raise DataError(self.path / "meta" / "episodes", key, f"it does not say where episode {episode} is")
            chunk, file, begin = found[episode]
            yield episode, {"chunk_index": chunk, "file_index": file}, begin

    def _video(
        self, path: Path, clips: list[Clip], shape: tuple[int, ...] | None
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        av = _import_av()
        wanted = [
            (clip.starts + step / self._fps, int(number)) for clip in clips for step, number in enumerate(clip.frames)
        ]
        if not path.is_file():
            raise DataError(path, None, "it is missing; is the dataset complete?")
        with reading(path), av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            shown = container.decode(video=0)
            for time, number in wanted:
                # Videos are joined with small errors of their clocks, so that the nearest picture is meant
                frame = next((frame for frame in shown if frame.time > time - 0.5 / self._fps), None)
                if frame is None or frame.time > time + 0.5 / self._fps:
                    raise DataError(path, None, f"it has no picture at {time:.3f} s; is it complete?")
                yield number, _picture(frame, shape)


def _import_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"LeRobot's datasets need pyarrow: {extra('lerobot')}") from error
    return parquet


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"The pictures of LeRobot's datasets need av: {extra('lerobot')}") from error
    return av


def _numbers(source: Path, key: str, column: Any) -> Array:
    """A column of numbers, or of lists of numbers that are all of one size."""
    from pyarrow import compute, types

    rows, shape = len(column), []
    values = column.combine_chunks()
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        sizes = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(sizes) > 1 or None in sizes:
            raise DataError(source, key, f"its rows have {' and '.join(map(str, sizes))} numbers")
        shape.append(sizes[0] if sizes else 0)
        values = compute.list_flatten(values)
    if values.null_count:
        raise DataError(source, key, "numbers are missing from it")
    array: Array = values.to_numpy(zero_copy_only=False)
    check_dtype(source, key, array.dtype)
    return array.reshape(rows, *shape)


def _picture(frame: Any, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """(channels, height, width) of a decoded picture."""
    channels, height, width = (3, frame.height, frame.width) if shape is None else shape
    format_ = CHANNELS[channels]
    array: NDArray[np.uint8] = frame.to_ndarray(format=format_, width=width, height=height, interpolation="AREA")
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
