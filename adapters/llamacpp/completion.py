"""The body of a native completion: what decides how it is forwarded, and its decoding for other backends."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hostler.adapters import json_body
from hostler.adapters.canonical import CompletionRequest, Sampling
from hostler.adapters.errors import BadRequest

_decode_entries = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NUMBER = frozenset(b"-0123456789")


class LlamaCompletionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that other servers support, under llama.cpp's names, as in `Sampling`."""

    prompt: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n_predict: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    json_schema: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(LlamaCompletionBody).decode


def is_portable(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a backend of another protocol can serve it: one text prompt, one response with all its fields."""
    return bytes(members.get("prompt", msgspec.Raw(b""))).startswith(b'"') and is_foldable(members)


def decode_request(request: CompletionRequest) -> CompletionRequest:
    """The request with its prompt and sampling decoded."""
    try:
        body = _decode(request.origin.body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request body is not a valid completion: {error}.") from None
    values = {name: getattr(body, name) for name in Sampling.__struct_fields__ if name in body.__struct_fields__}
    # Negative values mean no limit, and a random seed.
    limit = body.n_predict if body.n_predict is not None else body.max_tokens
    values["seed"] = None if body.seed is None or body.seed < 0 else body.seed
    values["max_tokens"] = None if limit is None or limit < 0 else limit
    values["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()) or None
    schema = None if bytes(body.json_schema) == b"null" else body.json_schema
    output = msgspec.structs.replace(request.output, schema=schema)
    return msgspec.structs.replace(request, prompt=body.prompt, sampling=Sampling(**values), output=output)


def prompt(body: bytes) -> msgspec.Raw | None:
    """The undecoded prompt of a valid body."""
    return json_body.members(body).get("prompt")


def wants_tokens(body: bytes) -> bool:
    """Whether a whole response is to contain token ids. The body must be valid."""
    return bytes(json_body.members(body).get("return_tokens", msgspec.Raw(b""))) == b"true"


def count_prompts(members: Mapping[str, msgspec.Raw]) -> int:
    """The number of prompts in a body. A list of numbers, or of numbers and strings, is one prompt of tokens."""
    prompt = bytes(members.get("prompt", msgspec.Raw(b"")))
    if not prompt.startswith(b"["):
        return 1
    entries = [bytes(entry) for entry in _decode_entries(prompt)]
    is_flat = all(not entry.startswith((b"[", b"{")) for entry in entries)
    if not entries or (is_flat and any(entry[0] in _NUMBER for entry in entries)):
        return 1
    return len(entries)


def is_foldable(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the whole response can be folded from a stream: there is one, and none of its fields is left out."""
    is_single = all(bytes(members.get(name, msgspec.Raw(b"1"))) in (b"1", b"null") for name in ("n", "n_cmpl"))
    return is_single and not has_response_fields(members) and count_prompts(members) == 1


def wants_probabilities(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether probabilities are wanted. A stream has those of tokens that become a stop sequence, the whole response
    does not."""
    return bytes(members.get("n_probs", msgspec.Raw(b"0"))) not in (b"0", b"null")


def has_response_fields(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the client chose the fields of the response; the last event then has no others."""
    return bytes(members.get("response_fields", msgspec.Raw(b"[]"))) not in (b"[]", b"null")
