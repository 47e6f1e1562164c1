"""Requests for a model that was made of another one, as Ollama takes them: what the model says stands in front."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.canonical import ChatRequest, CompletionRequest, Request
from hostler.adapters.ollama import gojson, memory, requests
from hostler.profiles.presets import Preset


def with_preset(request: Request, preset: Preset) -> Request:
    """The request with the preset's options, system turn and first turns, wherever it says nothing itself."""
    if not isinstance(request, ChatRequest | CompletionRequest):
        return request
    origin = request.origin
    body: dict[str, Any] = gojson.read(origin.body, "Request").all()
    given = {name.lower(): value for name, value in body.get("options", {}).items() if value is not None}
    if preset.parameters:
        body["options"] = {**preset.parameters, **given}
    if origin.operation == "chat":
        sent = body.get("messages", [])
        turns = [*({"role": turn.role, "content": turn.content} for turn in preset.messages), *sent]
        first = sent[0] if sent and isinstance(sent[0], dict) else {}
        says = {name.lower(): value for name, value in first.items()}.get("role")
        if preset.system and str(says).lower() != "system":
            turns.insert(0, {"role": "system", "content": preset.system})
        body["messages"] = turns
    elif not body.get("raw"):
        if preset.system and not body.get("system"):
            body["system"] = preset.system
        if preset.messages and not body.get("context") and not body.get("suffix"):
            body["context"] = memory.pack([(turn.role, turn.content) for turn in preset.messages])
    changed = msgspec.structs.replace(origin, body=gojson.write(body))
    return requests.chat(changed) if origin.operation == "chat" else requests.generate(changed)
