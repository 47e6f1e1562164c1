"""Four models, and requests of LM Studio's clients."""

from __future__ import annotations

import json
from typing import Any

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import Request
from hostler.adapters.lmstudio.adapter import LMStudioAdapter
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.profiles.schema import ModelFacts

ADAPTER = LMStudioAdapter()
FACTS = ModelFacts(
    architecture="qwen3", parameters=8_190_000_000, quantization="Q4_K_M", training_context=131072, bytes=5
)
A = ModelCard(
    name="a/b", aliases=("tiny",), context=32768, size=5, state="loaded", facts=FACTS,
    capabilities=("completion", "tools", "vision"),
)  # fmt: skip
E = ModelCard(name="e", context=512, capabilities=("embedding",))
CLOUD = ModelCard(name="cloud", state="loaded")
HIDDEN = ModelCard(name="hidden", listed=False)
LISTING = ModelList(cards=(A, CLOUD, E, HIDDEN), index={"a/b": A, "tiny": A, "e": E, "cloud": CLOUD, "hidden": HIDDEN})


def decode_request(method: str, path: str, body: Any = b"", *, pattern: str | None = None, **params: str) -> Request:
    operation = next(one for one in ADAPTER.operations if one.path == (pattern or path) and method in one.methods)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ADAPTER.decode(operation, Incoming(method=method, path=path, body=sent, path_params=params))
