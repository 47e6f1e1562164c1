"""Reads the header of a GGUF file in bounded time and memory: the file may be malicious.

Blocks: callers on an event loop use a thread.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

Scalar = str | int | float | bool | None

# A real header has some megabytes, nearly all of it the tokenizer's (up to about 600,000 tokens and merges).
MAX_HEADER_BYTES = 128 * 1024 * 1024
MAX_KEYS = 16_384
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 4 * 1024 * 1024
MAX_KEPT_BYTES = 16 * 1024 * 1024
MAX_ELEMENTS = 4_000_000
MAX_INNER_ARRAYS = 65_536
MAX_TENSORS = 131_072
MAX_LISTED_TENSORS = 8192
MAX_DIMENSIONS = 8
MAX_NESTING = 4
MAX_LAYERS = 4096

_CHUNK = 1024 * 1024
_LONGEST_NAME = 256
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_STRUCTS = {kind: struct.Struct(form) for kind, form in _FORMATS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# Tensor type -> (weights of a block, bytes of a block): enough to see that a file ends too early.
_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17),
}  # fmt: skip

# What a file is that begins otherwise, in lower case.
_OTHER_STARTS: Mapping[bytes, str] = {
    b"vers": ": it is a pointer of Git LFS, and `git lfs pull` fetches the model",
    b"<!do": ": it is a web page; download the file itself",
    b"<htm": ": it is a web page; download the file itself",
    **dict.fromkeys((b"lmgg", b"tjgg", b"algg"), ": it is an older GGML file; get the model as GGUF"),
    b"pk\3\4": ": it is an archive; unpack it, or get the model as GGUF",
}


class GGUFError(Exception):
    """An unusable model file; `kind` is one of the supervisor's failure kinds."""

    def __init__(self, kind: Literal["file_missing", "not_gguf", "model_damaged"], message: str) -> None:
        super().__init__(kind, message)
        self.kind: Literal["file_missing", "not_gguf", "model_damaged"] = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """One file's header: `values` with `None` for arrays, `layers` the short integer arrays among them.

    `tensors` are names, types and shapes; empty for a file with more than `MAX_LISTED_TENSORS`.
    """

    values: dict[str, Scalar]
    layers: dict[str, tuple[int, ...]]
    parameters: int
    size: int
    tensors: tuple[tuple[str, int, tuple[int, ...]], ...] = ()


def file_status(path: Path) -> os.stat_result:
    """The status of a regular file. Raises `GGUFError` for anything else."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such path"
        raise GGUFError("file_missing", f"{path} cannot be read: {reason}") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
        raise GGUFError("file_missing", f"{path} is not a file")
    return status


def read_header(path: Path) -> Header:
    """Raises `GGUFError`, and nothing else whatever the file contains."""
    size = file_status(path).st_size
    try:
        with path.open("rb", buffering=0) as file:
            return _HeaderReader(path, file, size).header()
    except OSError as error:
        raise GGUFError("file_missing", f"{path} cannot be read: {error.strerror}") from None


def read_header_start(start: bytes, size: int) -> Header:
    """What the first bytes of a file of `size` bytes say: the keys before the first one that is cut off. No tensors.

    Raises `GGUFError` if they are no GGUF file.
    """
    return _HeaderReader(Path("the file"), BytesIO(start), len(start)).header_start(size)


class _HeaderReader:
    """Reads forwards. Not from a memory map: truncating a mapped file kills the process."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._limit = min(size, MAX_HEADER_BYTES)
        self._buffer = b""
        self._start = 0  # position of the buffer in the file
        self._at = 0  # position in the buffer
        self._elements = self._inner_arrays = 0
        self._kept = 0
        self._described: list[tuple[str, int, tuple[int, ...]]] = []
        self._word = _U64

    def header(self) -> Header:
        version = self._version()
        self._word = _U32 if version == 1 else _U64
        tensors, keys = self._count(), self._count()
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise self._damaged(f"claims {tensors} tensors and {keys} keys")
        values: dict[str, Scalar] = {}
        layers: dict[str, tuple[int, ...]] = {}
        for _ in range(keys):
            self._key(values, layers)
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._damaged(f"is aligned to {alignment!r}")
        parameters = self._tensors(tensors, alignment)
        described = tuple(self._described) if tensors <= MAX_LISTED_TENSORS else ()
        return Header(values=values, layers=layers, parameters=parameters, size=self._size, tensors=described)

    def header_start(self, size: int) -> Header:
        """The keys that are complete."""
        version = self._version()
        self._word = _U32 if version == 1 else _U64
        values: dict[str, Scalar] = {}
        layers: dict[str, tuple[int, ...]] = {}
        try:
            _, keys = self._count(), self._count()
            for _ in range(min(keys, MAX_KEYS)):
                self._key(values, layers)
        except GGUFError:
            pass  # the rest is not there
        return Header(values=values, layers=layers, parameters=0, size=size)

    def _key(self, values: dict[str, Scalar], layers: dict[str, tuple[int, ...]]) -> None:
        """Read the next key into `values`, and `layers` if it is a short array."""
        key = self._string(MAX_KEY_BYTES)
        if key in values:
            raise self._damaged(f"has the key {key[:80]!r} twice")
        kind = self._number(_U32)
        if kind == _ARRAY:
            values[key] = None
            if numbers := self._array(1):
                layers[key] = numbers
        else:
            values[key] = self._value(kind)

    def _version(self) -> int:
        if self._size < 4:
            what = "is not a GGUF file" if self._size else "is empty; the download may be incomplete"
            raise GGUFError("not_gguf", f"{self._path} {what}")
        if (start := self._take(4)) != b"GGUF":
            raise GGUFError("not_gguf", f"{self._path} is not a GGUF file{_OTHER_STARTS.get(start.lower(), '')}")
        version = self._number(_U32)
        if version & 0xFFFF == 0:
            raise GGUFError("not_gguf", f"{self._path} is a big-endian GGUF file, which is not supported")
        if version not in (1, 2, 3):
            raise GGUFError("not_gguf", f"{self._path} is GGUF version {version}; supported are 1 to 3")
        return version

    def _tensors(self, count: int, alignment: int) -> int:
        parameters = end = 0
        for _ in range(count):
            name = self._string(MAX_KEY_BYTES)
            dimensions = self._number(_U32)
            if dimensions > MAX_DIMENSIONS:
                raise self._damaged(f"has a tensor of {dimensions} dimensions")
            shape = tuple(self._count() for _ in range(dimensions))
            weights = math.prod(shape)
            kind, offset = self._number(_U32), self._number(_U64)
            if kind in _BLOCKS:
                per_block, size = _BLOCKS[kind]
                end = max(end, offset + weights // per_block * size)
            if count <= MAX_LISTED_TENSORS:
                self._described.append((name[:_LONGEST_NAME], kind, shape))
            parameters += weights
            if max(parameters, end) >= 1 << 63:
                raise self._damaged("claims an impossible number of weights")
        position = self._start + self._at
        if end and position + -position % alignment + end > self._size:
            raise self._damaged(f"is truncated at {self._size} bytes; the download may be incomplete")
        return parameters

    def _value(self, kind: int) -> Scalar:
        if kind == _STRING:
            text = self._string(MAX_STRING_BYTES)
            self._kept += len(text)
            if self._kept > MAX_KEPT_BYTES:
                raise self._damaged("has too much text in its header")
            return text
        if kind not in _STRUCTS:
            raise self._damaged(f"has a value of the unknown type {kind}")
        if kind == _FLOAT32:
            return _shortest_float(self._take(4))
        number: int | float = _STRUCTS[kind].unpack(self._take(_STRUCTS[kind].size))[0]
        if kind == _BOOL:
            return bool(number)
        return number if isinstance(number, int) or math.isfinite(number) else None

    def _array(self, depth: int) -> tuple[int, ...]:
        """Skip an array; short integer arrays are returned, since they may have one number per layer."""
        kind, count = self._number(_U32), self._count()
        if kind in (_STRING, _ARRAY):
            self._elements += count
            self._inner_arrays += count if kind == _ARRAY else 0
            if self._elements > MAX_ELEMENTS or self._inner_arrays > MAX_INNER_ARRAYS or depth > MAX_NESTING:
                raise self._damaged(f"has an array of {count} elements")
            if kind == _STRING:
                self._skip_strings(count)
            else:
                for _ in range(count):
                    self._array(depth + 1)
            return ()
        if kind not in _STRUCTS:
            raise self._damaged(f"has an array of the unknown type {kind}")
        form = _STRUCTS[kind]
        if depth == 1 and count <= MAX_LAYERS and kind not in (_FLOAT32, 12):
            return tuple(number for (number,) in form.iter_unpack(self._take(count * form.size)))
        self._skip(count * form.size)
        return ()

    def _skip_strings(self, count: int) -> None:
        unpack, width = self._word.unpack_from, self._word.size
        for _ in range(count):
            if self._at + width > len(self._buffer):
                self._refill(width)
            (length,) = unpack(self._buffer, self._at)
            self._at += width
            if self._at + length <= len(self._buffer):
                self._at += length
            else:
                self._skip(length)

    def _string(self, limit: int) -> str:
        length = self._count()
        if length > limit:
            raise self._damaged(f"has a string of {length} bytes")
        raw = self._take(length)
        if self._word is _U32:
            raw = raw.rstrip(b"\0")
        return raw.decode("utf-8", "replace")

    def _count(self) -> int:
        return self._number(self._word)

    def _number(self, form: struct.Struct) -> int:
        if self._at + form.size > len(self._buffer):
            self._refill(form.size)
        number: int = form.unpack_from(self._buffer, self._at)[0]
        self._at += form.size
        return number

    def _take(self, length: int) -> bytes:
        if self._at + length > len(self._buffer):
            self._refill(length)
        taken = self._buffer[self._at : self._at + length]
        self._at += length
        return taken

    def _skip(self, length: int) -> None:
        position = self._start + self._at + length
        if position > self._limit:
            raise self._too_short()
        if self._at + length <= len(self._buffer):
            self._at += length
            return
        self._file.seek(position)
        self._buffer, self._start, self._at = b"", position, 0

    def _refill(self, length: int) -> None:
        """Buffer at least `length` bytes."""
        position = self._start + self._at
        if position + length > self._limit:
            raise self._too_short()
        kept = self._buffer[self._at :]
        pieces = [kept]
        missing = max(length, _CHUNK) - len(kept)
        while missing > 0 and (piece := self._file.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self._buffer, self._start, self._at = b"".join(pieces), position, 0
        if len(self._buffer) < length:
            raise self._too_short()

    def _too_short(self) -> GGUFError:
        if self._limit < self._size:
            return self._damaged(f"has a header of more than {MAX_HEADER_BYTES} bytes")
        return self._damaged("is truncated within its header; the download may be incomplete")

    def _damaged(self, what: str) -> GGUFError:
        return GGUFError("model_damaged", f"{self._path} {what}")


def _shortest_float(raw: bytes) -> float | None:
    """The shortest number with this single-precision value: 1e-05, not 9.999999747378752e-06."""
    (number,) = struct.unpack("<f", raw)
    if not math.isfinite(number):
        return None
    for digits in range(1, 9):
        short = float(f"{number:.{digits}g}")
        try:
            if struct.pack("<f", short) == raw:
                return short
        except OverflowError:  # rounded up beyond the largest
            continue
    return float(f"{number:.9g}")
