"""Truncates requests that exceed the context, as Ollama does: drops the oldest messages, or cuts a text.

Only the engine can count tokens: its error says how many there were; the rest is estimated from lengths in characters.
"""

from __future__ import annotations

import msgspec

from hostler.adapters.canonical import ChatMessage, ChatRequest, CompletionRequest, EmbedRequest, Request, Text
from hostler.adapters.error_body import read_error
from hostler.adapters.errors import BackendRejected
from hostler.adapters.ollama.go_compat import decode_fields

# Characters that a chat template adds to a message.
_TEMPLATE_CHARS = 16
# Characters per token, and Ollama's `num_keep`.
_CHARS_PER_TOKEN = 4
_KEEP = 4
# Characters are a rough measure: a little more than necessary is dropped.
_MARGIN = 0.95


def overflow(rejected: BackendRejected) -> tuple[int, int] | None:
    """The number of tokens and the limit, if the backend rejected the request for its length."""
    details = read_error(rejected.body)
    return details.sizes if details is not None and details.is_overflow else None


def may_truncate(request: Request) -> bool:
    """Whether the client allows the request to be truncated."""
    return decode_fields(request.origin.body, "Request").flag("truncate") is not False


def truncated(request: Request, rejected: BackendRejected) -> Request | None:
    """A smaller request; `None` if it was not too large, must not be truncated, or cannot get any smaller."""
    sizes = overflow(rejected)
    if sizes is None or not isinstance(request, ChatRequest | CompletionRequest | EmbedRequest):
        return None
    if not may_truncate(request):
        return None
    tokens, limit = sizes
    share = min(limit / max(tokens, 1), 1.0) * _MARGIN
    if isinstance(request, EmbedRequest):
        return _truncated_input(request, share)
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
    """The system messages and the newest others within this share of the total length; at least one is dropped."""
    system = [at for at, message in enumerate(messages) if message.role == "system"]
    others = [at for at, message in enumerate(messages) if message.role != "system"]
    budget = share * sum(map(_length, messages)) - sum(_length(messages[at]) for at in system)
    kept: list[int] = []
    for at in reversed(others[1:]):
        budget -= _length(messages[at])
        if kept and budget < 0:
            break
        kept.append(at)
    # A result without its call is useless.
    while len(kept) > 1 and messages[kept[-1]].role == "tool":
        kept.pop()
    if not kept:
        return None
    return tuple(messages[at] for at in sorted(system + kept))


def _length(message: ChatMessage) -> int:
    text = sum(len(part.text) for part in message.parts if isinstance(part, Text))
    calls = sum(len(call.arguments) + len(call.name or "") for call in message.tool_calls)
    return _TEMPLATE_CHARS + text + calls + len(message.reasoning or "")


def _without_middle(request: CompletionRequest, share: float) -> CompletionRequest | None:
    """A raw prompt without its middle: the first `num_keep` tokens and the end are kept."""
    prompt = request.prompt or ""
    kept = int(len(prompt) * share)
    first = decode_fields(request.origin.body, "Request").mapping("options").get("num_keep")
    head = min(_CHARS_PER_TOKEN * (int(first) if isinstance(first, int | float) and first >= 0 else _KEEP), kept // 2)
    if not 0 < kept < len(prompt):
        return None
    return msgspec.structs.replace(request, prompt=prompt[:head] + prompt[len(prompt) - (kept - head) :])


def _truncated_input(request: EmbedRequest, share: float) -> EmbedRequest | None:
    """The request with its longest text truncated: the engine does not say which one was too long."""
    inputs = list(request.inputs or ())
    longest = max(range(len(inputs)), key=lambda at: len(inputs[at]), default=None)
    if longest is None or len(inputs[longest]) < 2:
        return None
    inputs[longest] = inputs[longest][: max(1, int(len(inputs[longest]) * share))]
    return msgspec.structs.replace(request, inputs=tuple(inputs))
