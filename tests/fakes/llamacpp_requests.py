"""Requests for llama-server's own routes, and what its engines get."""

from __future__ import annotations

import json
from typing import Any

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import Request
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream

ADAPTER = LlamaCppAdapter()
UPSTREAM = LlamaCppUpstream()


def decode_request(method: str, path: str, body: Any = b"", *, query: str = "", **headers: str) -> Request:
    """The decoded request; unknown paths match the catch-all."""
    known = [one for one in ADAPTER.operations if method in one.methods]
    operation = next((one for one in known if one.path == path), known[-1])
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ADAPTER.decode(operation, Incoming(method=method, path=path, body=sent, query=query, headers=named))


def sent(request: Request, *, model: str = "there", stream: bool = True) -> Any:
    """The JSON that an engine gets."""
    return json.loads(UPSTREAM.build(request, model=model, stream=stream).body)
