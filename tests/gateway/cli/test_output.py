"""Output that blocks only the thread that writes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from hostler.gateway.cli.output import DescriptorStream, print_in_background, write_all


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ours, theirs = os.pipe()
    yield ours, theirs
    for descriptor in (ours, theirs):
        try:
            os.close(descriptor)
        except OSError:
            pass  # closed by the test


def read(descriptor: int, length: int) -> str:
    data = b""
    while len(data) < length:
        data += os.read(descriptor, 65536)
    return data.decode()


def test_writing_waits_for_a_descriptor_that_does_not_block(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    os.set_blocking(theirs, False)
    text = "x" * 200_000
    writer = threading.Thread(target=write_all, args=(theirs, text))
    writer.start()
    assert read(ours, len(text)) == text
    writer.join()


def test_what_cannot_be_encoded_is_escaped(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    write_all(theirs, "a\udcff")
    assert read(ours, 7) == "a\\udcff"


def test_printing_in_the_background_does_not_wait(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    print_in_background(theirs, "x" * 200_000)
    assert read(ours, 200_001) == "x" * 200_000 + "\n"


def test_printing_for_a_reader_that_has_gone_is_no_error(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    os.close(ours)
    print_in_background(theirs, "a line")
    for thread in threading.enumerate():
        if thread.name == "print":
            thread.join(20)


def test_a_stream_over_a_pipe(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    stream = DescriptorStream(theirs)
    assert stream.write("a line") == 6
    stream.flush()
    assert read(ours, 6) == "a line"
    assert (stream.fileno(), stream.isatty()) == (theirs, False)
