"""OpenAI's requests for a model that was made of another one: changed as bytes, so that nothing else is touched."""

from __future__ import annotations

import msgspec

from hostler.adapters import presetting
from hostler.adapters.canonical import ChatRequest, CompletionRequest, Request
from hostler.profiles.presets import Preset

# As responses call what chats call otherwise; they know no others.
_RESPONSES = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_output_tokens"}


def with_preset(request: Request, preset: Preset) -> Request:
    """The request with what the preset says and the client does not."""
    if not isinstance(request, ChatRequest | CompletionRequest):
        return request
    body = request.origin.body
    wanted = presetting.sampling(preset)
    if request.origin.operation == "responses":
        wanted = {_RESPONSES[name]: value for name, value in wanted.items() if name in _RESPONSES}
        if preset.system:
            wanted["instructions"] = preset.system
        body = presetting.with_defaults(body, wanted)
    else:
        body = presetting.with_defaults(body, wanted, instead={"max_tokens": presetting.LIMITS})
        if isinstance(request, ChatRequest):
            body = presetting.with_turns(body, preset.messages, preset.system)
    return msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, body=body))
