"""Chunks and signs of life that a parser holds back."""

from __future__ import annotations

from hostler.adapters.canonical import Chunk
from hostler.adapters.held_chunks import MAX_SIGNS, HeldChunks


def raw(chunks: list[Chunk]) -> list[bytes]:
    return [chunk.raw for chunk in chunks]


def test_what_is_not_taken_comes_in_its_order() -> None:
    held = HeldChunks()
    held.add_sign("w", b"1")
    held.add_sign("w", b"2")
    held.add([Chunk(raw=b"3")])
    held.add_sign("w", b"4")
    assert (bool(held), held.openings) == (True, 1)
    assert raw(held.take()) == [b"12", b"3", b"4"]
    assert (bool(held), held.openings, held.take()) == (False, 0, [])


def test_signs_are_taken_without_what_opens_the_response() -> None:
    held = HeldChunks()
    held.add_sign("w", b"1")
    held.add([Chunk(raw=b"2")])
    held.add_sign("w", b"3")
    assert (held.take_signs(), held.take_signs()) == (b"13", b"")
    held.add_sign("w", b"4")
    assert raw(held.take()) == [b"2", b"4"]


def test_signs_that_go_on_for_ever_are_dropped() -> None:
    held = HeldChunks()
    for _ in range(3):
        held.add_sign("w", b"x" * (MAX_SIGNS // 2))
    assert len(held.take_signs()) == MAX_SIGNS // 2 * 2
    held.add_sign("w", b"y")
    assert held.take_signs() == b"y"
