"""Decompression in bounded steps."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.gateway.backends.content_coding import STEP, Decompressor, UnknownCoding


@given(st.binary(max_size=2000), st.lists(st.integers(1, 500), min_size=1), st.sampled_from(["gzip", "deflate"]))
def test_any_cut_gives_the_same_bytes(data: bytes, sizes: list[int], coding: str) -> None:
    packed = (gzip.compress if coding == "gzip" else zlib.compress)(data)
    decompressor, unpacked, at = Decompressor(coding), b"", 0
    for size in [*sizes, len(packed)]:
        unpacked += b"".join(decompressor.steps(packed[at : at + size]))
        at += size
    assert unpacked == data
    assert decompressor.complete


def test_a_bomb_comes_in_small_steps() -> None:
    decompressor = Decompressor("gzip")
    steps = list(map(len, decompressor.steps(gzip.compress(bytes(50 * 1024**2)))))
    assert max(steps) <= STEP
    assert sum(steps) == 50 * 1024**2


@pytest.mark.parametrize("make", [lambda: Decompressor("br"), lambda: list(Decompressor("gzip").steps(b"no gzip"))])
def test_what_cannot_be_read_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UnknownCoding):
        make()


def test_an_answer_that_was_cut_off_is_not_complete() -> None:
    decompressor = Decompressor("gzip")
    list(decompressor.steps(gzip.compress(b"word" * 100)[:-4]))
    assert not decompressor.complete
