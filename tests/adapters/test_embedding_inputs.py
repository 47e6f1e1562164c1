"""How many vectors a request for embeddings is answered with, and in which form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.embedding_inputs import count_inputs, wants_bytes


@pytest.mark.parametrize(
    ("given", "count"),
    [
        *(("a", 0), ("", 0), (None, 0), ({"text": "a"}, 0), ([], 0)),
        *((["a"], 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ([{"text": "a"}, {"image": "b"}], 2)),
    ],
)
def test_inputs_are_counted(given: Any, count: int) -> None:
    assert count_inputs(json.dumps({"model": "m", "input": given}).encode()) == count


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"--form", b'{"input": ["a"', b'{"input": ["a"]}' + b" " * 1024**2]
)
def test_what_cannot_be_counted_is_unknown(body: bytes) -> None:
    assert count_inputs(body) == 0


@pytest.mark.parametrize(
    ("form", "answer"), [("bytes", True), ("bytes_only", True), ("base64", False), ("float", False), (3, False)]
)
def test_the_form_of_plain_bytes_is_recognized(form: Any, answer: bool) -> None:
    assert wants_bytes(json.dumps({"input": "bytes", "encoding_format": form}).encode()) is answer
    assert not wants_bytes(b'{"encoding_format": "bytes"')
