"""A native completion's body: what must be known of it before it is forwarded, and its meaning for other backends."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hostler.adapters import json_body
from hostler.adapters.errors import BadRequest
from hostler.adapters.types import CompletionRequest, Sampling

_entries = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NUMBER = frozenset(b"-0123456789")


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """What other servers understand of a native completion. The names are llama.cpp's, as in `Sampling`."""

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


_decode = msgspec.json.Decoder(_Body).decode


def plain(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether any server could answer: one prompt of text, and one answer with all its fields."""
    return bytes(members.get("prompt", msgspec.Raw(b""))).startswith(b'"') and foldable(members)


def expand(request: CompletionRequest) -> CompletionRequest:
    """The request with its prompt and its sampling decoded, for a backend of another protocol."""
    try:
        body = _decode(request.origin.body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request body is not what a completion takes: {error}.") from None
    values = {name: getattr(body, name) for name in Sampling.__struct_fields__ if name not in ("max_tokens", "stop")}
    # Less than nothing means without a limit, and a seed by chance.
    limit = body.n_predict if body.n_predict is not None else body.max_tokens
    values["seed"] = None if body.seed is None or body.seed < 0 else body.seed
    values["max_tokens"] = None if limit is None or limit < 0 else limit
    values["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()) or None
    schema = None if bytes(body.json_schema) == b"null" else body.json_schema
    output = msgspec.structs.replace(request.output, schema=schema)
    return msgspec.structs.replace(request, prompt=body.prompt, sampling=Sampling(**values), output=output)


def prompt(body: bytes) -> msgspec.Raw | None:
    """The prompt as it stands in a body that has been checked before."""
    return json_body.members(body).get("prompt")


def asks_for_tokens(body: bytes) -> bool:
    """Whether a whole answer is to hold the tokens as numbers. The body has been checked before."""
    return bytes(json_body.members(body).get("return_tokens", msgspec.Raw(b""))) == b"true"


def prompts(members: Mapping[str, msgspec.Raw]) -> int:
    """How many prompts a body holds. A list that begins with a number is one prompt of tokens."""
    prompt = bytes(members.get("prompt", msgspec.Raw(b"")))
    if not prompt.startswith(b"["):
        return 1
    entries = [bytes(entry) for entry in _entries(prompt)]
    plain = all(not entry.startswith((b"[", b"{")) for entry in entries)
    # Numbers and strings mixed are one prompt, too.
    if not entries or (plain and any(entry[0] in _NUMBER for entry in entries)):
        return 1
    return len(entries)


def foldable(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the whole answer can be made of a stream: it is one answer, and none of its fields is left out."""
    alone = all(bytes(members.get(name, msgspec.Raw(b"1"))) in (b"1", b"null") for name in ("n", "n_cmpl"))
    return alone and not chosen(members) and prompts(members) == 1


def weighed(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether probabilities are asked for: of tokens that become a stop word, a stream tells what the whole answer
    takes back."""
    return bytes(members.get("n_probs", msgspec.Raw(b"0"))) not in (b"0", b"null")


def chosen(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the client chose the fields of the answer; its last event then has those and no other."""
    return bytes(members.get("response_fields", msgspec.Raw(b"[]"))) not in (b"[]", b"null")
