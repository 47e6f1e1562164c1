"""A preset's values put into a request's JSON wherever the client gave none; every other byte stays as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody, patch
from hostler.profiles.presets import Preset, PresetMessage

# Parameters that OpenAI, llama-server and Ollama give the same name.
_SHARED = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
    *("presence_penalty", "frequency_penalty"),
)
#: What clients call the limit of generated tokens.
MAX_TOKENS_NAMES = ("max_tokens", "max_completion_tokens", "n_predict")

_decode_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_message = msgspec.json.Decoder(dict[str, Any]).decode


def preset_sampling(preset: Preset) -> dict[str, Any]:
    """The preset's parameters under the names of OpenAI and llama-server; those that only Ollama has are left out."""
    parameters = preset.parameters
    sampling: dict[str, Any] = {name: parameters[name] for name in _SHARED if name in parameters}
    seed, limit = parameters.get("seed"), parameters.get("num_predict")
    if isinstance(seed, int | float) and seed >= 0:
        sampling["seed"] = int(seed)
    if isinstance(limit, int | float) and limit >= 0:
        sampling["max_tokens"] = int(limit)
    if parameters.get("stop"):
        sampling["stop"] = parameters["stop"]
    return sampling


def with_defaults(
    body: bytes, defaults: Mapping[str, Any], *, aliases: Mapping[str, Sequence[str]] | None = None
) -> bytes:
    """The body with these members where it has none. `aliases` lists the names under which a member may be present."""
    document = JsonBody(body)
    missing = {
        name: msgspec.json.encode(value)
        for name, value in defaults.items()
        if not any(document.has(alias) for alias in ((aliases or {}).get(name, ()) or (name,)))
    }
    return patch(body, missing, document.members) if missing else body


def with_messages(body: bytes, messages: Sequence[PresetMessage], system: str = "") -> bytes:
    """The body with the preset's messages in front of its own, and the system prompt first unless it brings one."""
    document = JsonBody(body)
    raw = bytes(document.members.get("messages", b""))
    if not raw.startswith(b"["):
        return body
    front = [msgspec.json.encode({"role": message.role, "content": message.content}) for message in messages]
    own = _decode_messages(raw)
    if system and not (own and _role(own[0]) in ("system", "developer")):
        front.insert(0, msgspec.json.encode({"role": "system", "content": system}))
    if not front:
        return body
    return patch(body, {"messages": b"[" + b",".join([*front, *map(bytes, own)]) + b"]"}, document.members)


def _role(message: msgspec.Raw) -> object:
    try:
        return _decode_message(message).get("role")
    except msgspec.DecodeError:
        raise BadRequest("`messages` must hold objects.", param="messages") from None
