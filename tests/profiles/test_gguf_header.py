"""GGUF headers: every number is checked, and no file can do harm."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fakes.gguf_files import ARR, F32, LLAMA, STR, TENSORS, U32, U64
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostler.profiles.gguf import GGUFError, read_facts
from hostler.profiles.gguf_header import MAX_KEYS, MAX_TENSORS


def test_floats_are_shortened(write_gguf: Callable[..., Path]) -> None:
    floats = [1e-05, 0.1, 1e-06, 500000.0, 3.4028234663852886e38, 0.044194173, 1.5, float("nan"), float("inf"), -0.0]
    facts = read_facts(write_gguf([(f"x.{index}", F32, value) for index, value in enumerate(floats)], []))
    assert [str(value) for value in facts.metadata.values()] == [
        "1e-05", "0.1", "1e-06", "500000.0", "3.4028235e+38", "0.044194173", "1.5", "None", "None", "-0.0",
    ]  # fmt: skip


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(99999997952.0)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_shortened_float_keeps_its_value(tmp_path: Path, gguf: Any, number: float) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf.bytes([("x", F32, number)]))
    short = read_facts(path).metadata["x"]
    assert isinstance(short, float)
    assert struct.pack("<f", short) == struct.pack("<f", number)
    assert digits_of(short) <= digits_of(number)


def digits_of(number: float) -> int:
    """The number of significant digits."""
    return len(Decimal(repr(number)).normalize().as_tuple().digits)


def error_of(path: Path, raw: bytes | None = None) -> tuple[str, str]:
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(GGUFError) as caught:
        read_facts(path)
    assert str(path) in str(caught.value)
    return caught.value.kind, str(caught.value).removeprefix(f"{path} ")


def test_rejects_other_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert error_of(path) == ("file_missing", "cannot be read: No such file or directory")
    assert error_of(tmp_path)[0] == "file_missing"
    assert error_of(path, b"") == ("not_gguf", "is empty; the download may be incomplete")
    assert error_of(path, b"GGU") == ("not_gguf", "is not a GGUF file")
    assert error_of(path, b"<!DOCTYPE html>")[0] == "not_gguf"
    assert error_of(path, b"GGUF" + struct.pack(">I", 3) + bytes(16))[1].startswith("is a big-endian GGUF")
    assert error_of(path, b"GGUF" + struct.pack("<I", 4) + bytes(16))[1] == "is GGUF version 4; supported are 1 to 3"


def test_does_not_block_on_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    assert error_of(tmp_path / "m.gguf") == ("file_missing", "is not a file")


HEAD = b"GGUF" + struct.pack("<I", 3)
HUGE = 2**63


@pytest.mark.parametrize(
    "raw",
    [
        HEAD,
        HEAD + struct.pack("<QQ", MAX_TENSORS + 1, 0),
        HEAD + struct.pack("<QQ", 0, MAX_KEYS + 1),
        HEAD + struct.pack("<QQ", HUGE, HUGE),
        HEAD + struct.pack("<QQQ", 0, 1, HUGE),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IQ", STR, HUGE) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<I", 99) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, 99, 1) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, U64, HUGE) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, STR, HUGE) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 5000,
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, ARR, 3_999_999) + bytes(1000),
        HEAD
        + (struct.pack("<Q", 0) + struct.pack("<Q", 2))
        + (struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 7, 1)) * 2,
        HEAD + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 99) + bytes(64),
        HEAD + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<IQQQIQ", 3, HUGE, HUGE, HUGE, 0, 0) + bytes(64),
        HEAD + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 1000, 0, 0) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 17) + b"general.alignment" + struct.pack("<II", U32, 0) + bytes(64),
    ],
)
def test_rejects_damaged_headers(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    begun = time.process_time()
    kind, _ = error_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind == "model_damaged"
    assert time.process_time() - begun < 2
    assert peak < 8 * 1024 * 1024


def test_rejects_a_truncated_file(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:-2000])
    assert error_of(path)[1].endswith("the download may be incomplete")


def test_a_sparse_file_of_a_terabyte_is_rejected_quickly(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(HEAD + struct.pack("<QQQ", 0, 3, 1) + b"k" + struct.pack("<IIQ", ARR, STR, 4_000_000))
        file.truncate(1 << 40)
    begun = time.process_time()
    assert error_of(path) == ("model_damaged", "has the key '' twice")
    assert time.process_time() - begun < 10


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_content_gives_facts_or_a_gguf_error(tmp_path: Path, gguf: Any, data: st.DataObject) -> None:
    raw = bytearray(gguf.bytes(LLAMA, TENSORS, data=64))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, 700))
        raw[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        read_facts(path)
    except GGUFError as error:
        assert error.kind in ("not_gguf", "model_damaged")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull` fetches the model"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"<html>", "it is a web page"),
        (b"lmgg\0\0\0\0", "it is an older GGML file"),
        (b"PK\x03\x04\0\0", "it is an archive"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, start: bytes, what: str) -> None:
    kind, text = error_of(tmp_path / "m.gguf", start)
    assert kind == "not_gguf" and text.startswith("is not a GGUF file: ") and what in text
