"""Reads the arrays of an npz file: mapped where they are stored as they are, else decompressed and cast in one pass."""

import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as numpy_format

from sb3_flow.datasets.arrays import BLOCK_BYTES, Array, check_dtype
from sb3_flow.datasets.errors import DataError, missing_array, reading

npy: Any = numpy_format  # without annotations
LOCAL_HEADER = struct.Struct("<26x2H")  # lengths of the name and of the extra field, after 26 bytes of no interest here
END_RECORD = struct.Struct("<10xH10x")  # number of members
SUFFIX = ".npy"


class Header(NamedTuple):
    """What an array is, known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    offset: int  # bytes before the numbers


class NpzReader:
    """An open npz file. It never unpickles, and every checksum of what it returns has been verified.

    :param path: the file
    :raises DataError: if it is not a complete zip archive
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path):
            self._archive = zipfile.ZipFile(path)
        try:
            with reading(path):
                self._check_directory()
        except DataError:
            self._archive.close()
            raise
        files = [info for info in self._archive.infolist() if not info.is_dir()]
        self._members = {info.filename.removesuffix(SUFFIX): info for info in files}

    def __enter__(self) -> "NpzReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(self._members)

    def header(self, key: str) -> Header:
        """Shape and dtype of an array, without reading it.

        :raises DataError: if it is missing, or holds other things than numbers
        """
        with reading(self.path, key), self._open(key) as stream:
            return self._header(key, stream)

    def read(self, key: str, dtype: type[np.generic] | None = None) -> Array:
        """An array in C order, read-only and memory-mapped if the file stores it in that form.

        :param dtype: what to cast to; None keeps the file's
        :raises DataError: if it is missing, damaged, or holds other things than numbers
        """
        with reading(self.path, key), self._open(key) as stream:
            header = self._header(key, stream)
            target = header.dtype.newbyteorder("=") if dtype is None else np.dtype(dtype)
            stored = self._members[key].compress_type == zipfile.ZIP_STORED
            if stored and target == header.dtype and not header.fortran_order:
                return self._map(key, header)
            return self._stream(stream, header, target)

    def _check_directory(self) -> None:
        """Notice arrays that damage hides: zipfile does not, and optional ones would not be missed."""
        infos = self._archive.infolist()
        for info in infos:
            # Opening compares both copies of the name
            self._archive.open(info).close()
        with self.path.open("rb") as file:
            file.seek(-END_RECORD.size - len(self._archive.comment), 2)
            (count,) = END_RECORD.unpack(file.read(END_RECORD.size))
        # 0xFFFF: the number is elsewhere, in an archive of 4 GB or more
        if count not in (len(infos), 0xFFFF) or len({info.filename for info in infos}) != len(infos):
            raise DataError(self.path, None, f"its directory is damaged: {len(infos)} arrays of {count}; get it again")

    def _open(self, key: str) -> IO[bytes]:
        if key not in self._members:
            raise missing_array(self.path, key, self._members)
        return self._archive.open(self._members[key])

    def _header(self, key: str, stream: IO[bytes]) -> Header:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataError(self.path, key, f"it is in version {version} of the npy format, which is for named fields")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
        check_dtype(self.path, key, dtype)
        offset = stream.tell()
        if offset + prod(shape) * dtype.itemsize != self._members[key].file_size:
            raise DataError(self.path, key, f"it has {self._members[key].file_size} bytes, not those of shape {shape}")
        return Header(shape, dtype, fortran_order, offset)

    def _map(self, key: str, header: Header) -> Array:
        info = self._members[key]
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        start = info.header_offset + LOCAL_HEADER.size + name + extra
        raw = np.memmap(self.path, np.uint8, "r", offset=start, shape=(info.file_size,))
        if zlib.crc32(raw.data) != info.CRC:
            raise DataError(self.path, key, "its checksum does not match: the file is damaged; get it again")
        # A plain array: slices of np.memmap are costly, and the base keeps the mapping open
        return raw.view(np.ndarray)[header.offset :].view(header.dtype).reshape(header.shape)

    def _stream(self, stream: IO[bytes], header: Header, target: np.dtype[Any]) -> Array:
        flat = np.empty(prod(header.shape), target)
        items = BLOCK_BYTES // header.dtype.itemsize
        for start in range(0, len(flat), items):
            block = flat[start : start + items]
            with np.errstate(over="ignore"):
                data = stream.read(block.size * header.dtype.itemsize)
                block[:] = np.frombuffer(data, header.dtype, count=block.size)
        if stream.read(1):  # at the end zipfile verifies the checksum
            raise EOFError("bytes after the last number")
        if header.fortran_order:
            return np.ascontiguousarray(flat.reshape(header.shape, order="F"))
        return flat.reshape(header.shape)
