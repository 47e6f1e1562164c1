"""What is the same in every part of Ollama's protocol: its name, its media types, and the answers of a backend as typed values."""

from __future__ import annotations

from typing import Any

import msgspec

WIRE = "ollama"

#: The version that is told to clients, some of which ask for a lowest one.
VERSION = "0.34.0"

JSON = "application/json; charset=utf-8"
LINES = "application/x-ndjson"
PLAIN = "text/plain; charset=utf-8"


class FunctionBody(msgspec.Struct, frozen=True, kw_only=True):
    """A call's function. `arguments` is an object."""

    index: int | None = None
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class CallBody(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool, whole."""

    id: str | None = None
    function: FunctionBody = FunctionBody()


class LogprobBody(msgspec.Struct, frozen=True, kw_only=True):
    """One token's log probability."""

    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[LogprobBody] | None = None


class MessageBody(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said, or the next piece of it."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[CallBody] | None = None


class AnswerBody(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a stream, or a whole answer: chat's has `message`, generate's `response`, embed's `embeddings`."""

    message: MessageBody | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[CallBody] | None = None
    logprobs: list[LogprobBody] | None = None
    embeddings: list[list[float]] | None = None
    embedding: list[float] | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    error: Any = msgspec.UNSET
