"""Decompression in bounded steps."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.gateway.backends.content_coding import STEP, Decompressor, UnknownCoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


PACK: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip of two parts": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "deflate": ("deflate", zlib.compress),
    "deflate without a header": ("deflate", bare_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
    "zstd of two frames": ("zstd", lambda data: zstd.compress(data[:9]) + zstd.compress(data[9:])),
}


@given(st.binary(max_size=2000), st.lists(st.integers(1, 500), min_size=1), st.sampled_from(sorted(PACK)))
def test_any_cut_gives_the_same_bytes(data: bytes, sizes: list[int], form: str) -> None:
    coding, pack = PACK[form]
    packed = pack(data)
    decompressor, unpacked, at = Decompressor(coding), b"", 0
    for size in [*sizes, len(packed)]:
        unpacked += b"".join(decompressor.steps(packed[at : at + size]))
        at += size
    assert unpacked == data
    assert decompressor.complete


@pytest.mark.parametrize("form", sorted(PACK))
def test_a_bomb_comes_in_small_steps(form: str) -> None:
    coding, pack = PACK[form]
    steps = list(map(len, Decompressor(coding).steps(pack(bytes(50 * 1024**2)))))
    assert max(steps) <= STEP
    assert sum(steps) == 50 * 1024**2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Decompressor("compress"),
        *(lambda coding=coding: list(Decompressor(coding).steps(b"no such data")) for coding in ("gzip", "br", "zstd")),
        lambda: list(Decompressor("deflate").steps(b"\xff\xff\xff")),
        lambda: list(Decompressor("br").steps(brotli.compress(b"word") + b"more")),
        lambda: list(Decompressor("gzip").steps(gzip.compress(b"") * 100)),
    ],
)
def test_what_cannot_be_read_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UnknownCoding):
        make()


@pytest.mark.parametrize("form", sorted(PACK))
def test_what_was_cut_off_is_not_complete(form: str) -> None:
    coding, pack = PACK[form]
    decompressor = Decompressor(coding)
    list(decompressor.steps(pack(b"word" * 100)[:-1]))
    assert not decompressor.complete
