"""Requests that do not fit into the context, made smaller as Ollama does: by their oldest turns, or the end of a text.

Only the engine can count tokens: its refusal tells how many there were, and lengths in characters stand for the rest.
"""

from __future__ import annotations

import re

import msgspec

from hostler.adapters.errors import BackendRejected
from hostler.adapters.ollama.go_compat import read
from hostler.adapters.types import ChatMessage, ChatRequest, CompletionRequest, EmbedRequest, Request, Text

_TOKENS = re.compile(rb"\((\d{1,12}) tokens\)")
_LIMIT = re.compile(rb"context size \((\d{1,12}) tokens\)|batch size: (\d{1,12})")
# What a template writes around a message, in characters.
_FRAME = 16
# The length of a token in characters, and Ollama's `num_keep`.
_TOKEN = 4
_KEEP = 4
# Characters are a rough measure: a little more than needed goes.
_MARGIN = 0.95


def overflow(rejected: BackendRejected) -> tuple[int, int] | None:
    """How many tokens there were and how many may be, if that is why the backend refused."""
    if b"too large" not in rejected.body and b"exceeds the available context" not in rejected.body:
        return None
    tokens, limit = _TOKENS.search(rejected.body), _LIMIT.search(rejected.body)
    if tokens is None or limit is None:
        return None
    return int(tokens[1]), int(limit[1] or limit[2])


def shortened(request: Request, rejected: BackendRejected) -> Request | None:
    """A smaller request, `None` if it was not too large, must not be cut, or nothing can go any more."""
    sizes = overflow(rejected)
    if sizes is None or not isinstance(request, ChatRequest | CompletionRequest | EmbedRequest):
        return None
    if read(request.origin.body, "Request").flag("truncate") is False:
        return None
    tokens, limit = sizes
    share = min(limit / max(tokens, 1), 1.0) * _MARGIN
    if isinstance(request, EmbedRequest):
        return _cut(request, share)
    if isinstance(request, CompletionRequest):
        return _without_middle(request, share)
    conversation = request.conversation
    if conversation is None:
        return None
    kept = _without_oldest(conversation.messages, share)
    if kept is None:
        return None
    return msgspec.structs.replace(request, conversation=msgspec.structs.replace(conversation, messages=kept))


def _without_oldest(messages: tuple[ChatMessage, ...], share: float) -> tuple[ChatMessage, ...] | None:
    """The system's words and the newest of the others, within the share of what there was; at least one goes."""
    system = [at for at, message in enumerate(messages) if message.role == "system"]
    others = [at for at, message in enumerate(messages) if message.role != "system"]
    room = share * sum(map(_length, messages)) - sum(_length(messages[at]) for at in system)
    kept: list[int] = []
    for at in reversed(others[1:]):
        room -= _length(messages[at])
        if kept and room < 0:
            break
        kept.append(at)
    # A result whose call is gone is no use to a template.
    while len(kept) > 1 and messages[kept[-1]].role == "tool":
        kept.pop()
    if not kept:
        return None
    return tuple(messages[at] for at in sorted(system + kept))


def _length(message: ChatMessage) -> int:
    said = sum(len(part.text) for part in message.parts if isinstance(part, Text))
    called = sum(len(call.arguments) + len(call.name or "") for call in message.tool_calls)
    return _FRAME + said + called + len(message.reasoning or "")


def _without_middle(request: CompletionRequest, share: float) -> CompletionRequest | None:
    """A prompt that is continued as it stands: its first words, as many tokens as `num_keep`, and its end."""
    prompt = request.prompt or ""
    kept = int(len(prompt) * share)
    first = read(request.origin.body, "Request").mapping("options").get("num_keep")
    head = min(_TOKEN * (int(first) if isinstance(first, int | float) and first >= 0 else _KEEP), kept // 2)
    if not 0 < kept < len(prompt):
        return None
    return msgspec.structs.replace(request, prompt=prompt[:head] + prompt[len(prompt) - (kept - head) :])


def _cut(request: EmbedRequest, share: float) -> EmbedRequest | None:
    """With the longest text cut: the engine does not say which one was too long."""
    inputs = list(request.inputs or ())
    longest = max(range(len(inputs)), key=lambda at: len(inputs[at]), default=None)
    if longest is None or len(inputs[longest]) < 2:
        return None
    inputs[longest] = inputs[longest][: max(1, int(len(inputs[longest]) * share))]
    return msgspec.structs.replace(request, inputs=tuple(inputs))
