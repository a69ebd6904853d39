"""What is in LeRobot's files: tables of frames, and cameras as images in them or as videos beside them."""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_flow.common.checks import extra, require
from sb3_flow.datasets.arrays import Array
from sb3_flow.datasets.errors import DataError, missing_array, missing_file, reading

INFO = Path("meta") / "info.json"
FORMATS = ("v2.", "v3.")
IMAGE, VIDEO = "image", "video"
CHANNELS = {1: "gray", 3: "rgb24"}
# FFmpeg's SWS_AREA | SWS_FULL_CHR_H_INT: without the second colours have half the resolution
AVERAGES = 0x20 | 0x2000

Picture = NDArray[np.uint8]  # (channels, height, width)


class Clip(NamedTuple):
    """An episode in a file of videos."""

    frames: NDArray[np.intp]  # (T,) numbers of the dataset's frames
    starts: float  # seconds


class Recording:
    """A dataset's frames, episode after episode, whatever the order of the files.

    :param path: a directory with meta/info.json
    :param episodes: those to read, by their numbers; None for all
    :raises ValueError: if it is damaged, incomplete, or of another format
    :raises FileNotFoundError: if there is none
    """

    def __init__(self, path: Path, episodes: Iterable[int] | None = None):
        self.path = path
        if not (path / INFO).is_file():
            raise missing_file("LeRobot's data", [path / INFO], "Give the directory that has meta and data in it.")
        with reading(path / INFO):
            self._info = json.loads((path / INFO).read_bytes())
            self.features: dict[str, dict[str, Any]] = {key: dict(of) for key, of in self._info["features"].items()}
            version = str(self._info["codebase_version"])
            self._tolerance = 0.5 / float(self._info["fps"])  # seconds, half a frame
        if not version.startswith(FORMATS):
            problem = f"it is {version}; formats 2 and 3 can be read, and LeRobot has scripts that convert older ones"
            raise DataError(path / INFO, "codebase_version", problem)
        self._file_an_episode = version.startswith("v2.")
        self._tables = sorted((path / "data").rglob("*.parquet"))
        self._columns = self._read_columns()
        self._order = self._ordered()
        self._choose(episodes)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._order)

    def is_camera(self, key: str) -> bool:
        """Whether a column holds pictures."""
        return self._feature(key).get("dtype") in (IMAGE, VIDEO)

    def is_numeric(self, key: str) -> bool:
        """Whether a column holds numbers."""
        return str(self._feature(key).get("dtype")).rstrip("0123456789") in ("float", "int", "uint", "bool")

    def numbers(self, key: str) -> Array:
        """A column of the tables, (N, ...)."""
        array: Array = self._stored(key)[self._order]
        return array

    def pictures(self, key: str, shape: tuple[int, ...] | None) -> Iterator[tuple[int, Picture]]:
        """The pictures of a camera, each with the number of its frame, in the order of the files.

        :param key: the camera's column
        :param shape: (channels, height, width) to bring them to, by area averages; None for colours in their own size
        """
        if shape is not None and shape[0] not in CHANNELS:
            problem = f"a picture has 1 or 3 channels, but {shape[0]} are wanted of it; frames are not stacked here"
            raise DataError(self.path, key, problem)
        feature = self._feature(key)
        described = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
        if any(value is True and name.endswith("is_depth_map") for name, value in described.items()):
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

    def _read_columns(self) -> Any:
        """The tables without their pictures, below each other, as Arrow's."""
        parquet, pyarrow = _import_parquet()
        if not self._tables:
            raise DataError(self.path / "data", None, "there are no .parquet files; is the dataset complete?")
        tables = []
        for path in self._tables:
            with reading(path), parquet.ParquetFile(path) as file:
                names = [name for name in file.schema_arrow.names if self.features.get(name, {}).get("dtype") != IMAGE]
                tables.append(file.read(columns=names))
        with reading(self.path / "data"):
            return pyarrow.concat_tables(tables)

    def _stored(self, key: str) -> Array:
        """A column in the order of the files."""
        self._feature(key)
        if key not in self._columns.column_names:
            raise missing_array(self.path / "data", key, self._columns.column_names)
        with reading(self.path, key):
            return _numbers(self.path, key, self._columns.column(key))

    def _ordered(self) -> NDArray[np.intp]:
        """Which stored frame each one is, (N,)."""
        episode, frame = (self._stored(key).astype(np.int64).reshape(-1) for key in ("episode_index", "frame_index"))
        order: NDArray[np.intp] = np.lexsort((frame, episode))
        episode, frame = episode[order], frame[order]
        for name, found in (("total_frames", len(order)), ("total_episodes", len(np.unique(episode)))):
            stated = self._info.get(name, found)
            if stated != found:
                raise DataError(
                    self.path / INFO, name, f"it is {stated}, but there are {found}; is the dataset complete?"
                )
        if len(order) == 0:
            raise DataError(self.path, "data", "it has no frames")
        first = np.searchsorted(episode, episode)  # (N,) where the episode begins
        bad = frame != np.arange(len(order)) - first
        if bad.any():
            row = int(bad.argmax())
            problem = f"frame {row - first[row]} of episode {episode[row]} is missing, or another is there twice"
            raise DataError(self.path, "frame_index", problem)
        return order

    def _choose(self, episodes: Iterable[int] | None) -> None:
        """Keep some episodes."""
        numbers = self.numbers("episode_index").reshape(-1)
        if episodes is not None:
            episodes = list(episodes)
            unknown = sorted(set(episodes) - set(numbers.tolist()))
            known = len(episodes) > 0 and not unknown
            require(known, "episodes", episodes, f"some of {numbers[0]} to {numbers[-1]}, as far as there are such")
            chosen = np.isin(numbers, episodes)
            self._order, numbers = self._order[chosen], numbers[chosen]
        self.episode: NDArray[np.int64] = numbers.astype(np.int64)  # (N,)
        self.first: NDArray[np.bool_] = np.append(True, numbers[1:] != numbers[:-1])  # (N,)
        self.last: NDArray[np.bool_] = np.append(self.first[1:], True)  # (N,)

    def _images(self, key: str, shape: tuple[int, ...] | None) -> Iterator[tuple[int, Picture]]:
        """Pictures in the tables."""
        parquet, _ = _import_parquet()
        av = _import_av()
        wanted = dict(zip(self._order.tolist(), range(len(self)), strict=True))
        start = found = 0
        for table in self._tables:
            with reading(table, key), parquet.ParquetFile(table) as file:
                column = file.read(columns=[key]).column(key)
            for stored in set(range(start, start + len(column))) & wanted.keys():
                with (
                    reading(table, key),
                    av.open(io.BytesIO(self._encoded(column[stored - start].as_py()))) as container,
                ):
                    picture = _picture(next(container.decode(video=0)), shape)
                found += 1
                yield wanted[stored], picture
            start += len(column)
        if found != len(self):
            raise DataError(self.path, key, f"it has {found} pictures, but there are {len(self)} frames")

    def _encoded(self, stored: dict[str, Any]) -> bytes:
        """An image's bytes, which may be in a file of their own."""
        inside: bytes | None = stored["bytes"]
        return (self.path / stored["path"]).read_bytes() if inside is None else inside

    def _videos(self, key: str) -> Iterator[tuple[Path, list[Clip]]]:
        """The videos of a camera, and which episodes are in each."""
        frames = np.split(np.arange(len(self)), np.flatnonzero(self.first)[1:])
        episodes = {int(self.episode[rows[0]]): rows for rows in frames}
        files: dict[Path, list[Clip]] = defaultdict(list)
        with reading(self.path / "meta", key):
            for episode, where, begin in self._places(key, list(episodes)):
                name = str(self._info["video_path"]).format(video_key=key, **where)
                files[self.path / name].append(Clip(episodes[episode], begin))
        for path, clips in files.items():
            yield path, sorted(clips, key=lambda clip: clip.starts)

    def _places(self, key: str, episodes: list[int]) -> Iterator[tuple[int, dict[str, int], float]]:
        """Where the video of each episode is, and at which second of it the episode begins."""
        if self._file_an_episode:
            size = int(self._info.get("chunks_size", 1000))
            for episode in episodes:
                yield episode, {"episode_chunk": episode // size, "episode_index": episode}, 0.0
            return
        parquet, _ = _import_parquet()
        found: dict[int, list[Any]] = {}
        names = ["episode_index", *(f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp"))]
        for path in sorted((self.path / "meta" / "episodes").rglob("*.parquet")):
            with reading(path), parquet.ParquetFile(path) as file:
                table = file.read(columns=names)
                rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
                found.update({episode: place for episode, *place in rows})
        for episode in episodes:
            if episode not in found or None in found[episode]:
                raise DataError(self.path / "meta" / "episodes", key, f"it does not say where episode {episode} is")
            chunk, file_index, begin = found[episode]
            yield episode, {"chunk_index": int(chunk), "file_index": int(file_index)}, float(begin)

    def _video(self, path: Path, clips: list[Clip], shape: tuple[int, ...] | None) -> Iterator[tuple[int, Picture]]:
        av = _import_av()
        times = self.numbers("timestamp").reshape(-1)
        wanted = [(clip.starts + float(times[number]), int(number)) for clip in clips for number in clip.frames]
        if not path.is_file():
            raise DataError(path, None, "it is missing; is the dataset complete?")
        with reading(path), av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            shown = container.decode(video=0)
            for time, number in wanted:
                # Videos are joined with small errors of their clocks, so that the nearest picture is meant
                frame = next((frame for frame in shown if frame.time > time - self._tolerance), None)
                if frame is None or frame.time > time + self._tolerance:
                    raise DataError(path, None, f"it has no picture at {time:.3f} s; is it complete?")
                yield number, _picture(frame, shape)


def _import_parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"LeRobot's datasets need pyarrow: {extra('lerobot')}") from error
    return parquet, pyarrow


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
    values = getattr(values, "storage", values)  # of types that the library `datasets` makes
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        sizes = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(sizes) > 1 or None in sizes:
            raise DataError(source, key, f"its rows have {' and '.join(map(str, sizes))} numbers")
        shape.append(sizes[0] if sizes else 0)
        values = compute.list_flatten(values)
    if not (types.is_integer(values.type) or types.is_floating(values.type) or types.is_boolean(values.type)):
        raise DataError(source, key, f"it holds {values.type}, not numbers")
    if values.null_count:
        raise DataError(source, key, "numbers are missing from it")
    array: Array = values.to_numpy(zero_copy_only=False)
    return array.reshape(rows, *shape)


def _picture(frame: Any, shape: tuple[int, ...] | None) -> Picture:
    """A decoded picture."""
    size = (frame.height, frame.width)
    channels, height, width = (3, *size) if shape is None else shape
    smaller = {} if (height, width) == size else {"width": width, "height": height, "interpolation": AVERAGES}
    array: Picture = frame.to_ndarray(format=CHANNELS[channels], **smaller)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
