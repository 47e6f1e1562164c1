"""What a request for embeddings says of its answer: a vector for each input, in JSON or as plain bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.json_body import NOT_JSON

# Larger requests are not read another time.
_MAX_BODY = 1024 * 1024


class _Request(msgspec.Struct, frozen=True):
    input: msgspec.Raw = msgspec.Raw(b"null")
    encoding_format: Any = None


_decode = msgspec.json.Decoder(_Request).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def count_inputs(body: bytes) -> int:
    """The number of texts, lists of tokens or other inputs; 0 if it is not known."""
    if len(body) > _MAX_BODY:
        return 0
    try:
        given = bytes(_decode(body).input)
        if given[:1] != b"[":
            return 0
        inputs = _decode_list(given)
    except NOT_JSON:
        return 0
    # A list of numbers is one input, already in tokens.
    return 1 if inputs and bytes(inputs[0])[:1].isdigit() else len(inputs)


def wants_bytes(body: bytes) -> bool:
    """Whether the vectors are to be sent as plain bytes, a form of vLLM."""
    if b"bytes" not in body or len(body) > _MAX_BODY:
        return False
    try:
        return _decode(body).encoding_format in ("bytes", "bytes_only")
    except NOT_JSON:
        return False
