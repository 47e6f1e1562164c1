"""What a preset says, put into a request's JSON wherever the client said nothing; every other byte stays as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody, patch
from hostler.profiles.presets import Preset, PresetMessage

# What OpenAI and llama-server call the same as Ollama.
_SAME = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
    *("presence_penalty", "frequency_penalty"),
)
LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")

_decode_turns = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_role = msgspec.json.Decoder(dict[str, Any]).decode


def sampling(preset: Preset) -> dict[str, Any]:
    """The preset's parameters as OpenAI and llama-server call them; what is only Ollama's is left out."""
    told: dict[str, Any] = {name: preset.parameters[name] for name in _SAME if name in preset.parameters}
    seed, limit = preset.parameters.get("seed"), preset.parameters.get("num_predict")
    if isinstance(seed, int | float) and seed >= 0:
        told["seed"] = int(seed)
    if isinstance(limit, int | float) and limit >= 0:
        told["max_tokens"] = int(limit)
    if preset.parameters.get("stop"):
        told["stop"] = preset.parameters["stop"]
    return told


def with_defaults(
    body: bytes, wanted: Mapping[str, Any], *, instead: Mapping[str, Sequence[str]] | None = None
) -> bytes:
    """The body with these members where it has none. `instead` names others that say the same as a member."""
    document = JsonBody(body)
    missing = {
        name: msgspec.json.encode(value)
        for name, value in wanted.items()
        if not any(document.has(other) for other in ((instead or {}).get(name, ()) or (name,)))
    }
    return patch(body, missing, document.members) if missing else body


def with_turns(body: bytes, turns: Sequence[PresetMessage], system: str = "") -> bytes:
    """The body with these turns in front of its `messages`, and the system's words before all if it begins with none."""
    document = JsonBody(body)
    raw = bytes(document.members.get("messages", b""))
    if not raw.startswith(b"["):
        return body
    front = [msgspec.json.encode({"role": turn.role, "content": turn.content}) for turn in turns]
    sent = _decode_turns(raw)
    if system and not (sent and _role(sent[0]) in ("system", "developer")):
        front.insert(0, msgspec.json.encode({"role": "system", "content": system}))
    if not front:
        return body
    whole = b"[" + b",".join([*front, *map(bytes, sent)]) + b"]"
    return patch(body, {"messages": whole}, document.members)


def _role(turn: msgspec.Raw) -> object:
    try:
        return _decode_role(turn).get("role")
    except msgspec.DecodeError:
        raise BadRequest("`messages` must hold objects.", param="messages") from None
