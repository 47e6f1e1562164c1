"""llama-server's native answers: parsed, and encoded for its clients."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hostler.adapters.base import Encoder
from hostler.adapters.canonical import Chunk, CompletionRequest, LoadRequest, Origin, Output, Passthrough, ResponseHead
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.llamacpp.response_parser import LlamaCppParser

STREAM = ResponseHead(media_type="text/event-stream")
WHOLE = ResponseHead(media_type="application/json; charset=utf-8")


def completion(*, stream: bool = False, operation: str = "completion", **fields: Any) -> Passthrough:
    origin = Origin(wire="llamacpp", operation=operation, body=json.dumps(fields).encode(), path="/completion")
    return Passthrough(origin=origin, model="a", output=Output(stream=stream))


def parse(segments: Iterable[bytes], *, head: ResponseHead = STREAM, responses: int = 1) -> list[Chunk]:
    parser = LlamaCppParser(responses=responses)
    parser.start(head)
    chunks = [chunk for segment in segments for chunk in parser.feed(segment)]
    return [*chunks, *parser.finish()]


def encoder(
    request: CompletionRequest | Passthrough | LoadRequest, head: ResponseHead = STREAM, *, progress: str = "thinking"
) -> Encoder:
    made = LlamaCppAdapter().encoder(request, response_id="x", created=1, progress=progress)
    made.start(head)
    return made
