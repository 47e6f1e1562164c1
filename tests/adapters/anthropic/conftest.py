"""The fixtures of the other protocols' tests, with the Anthropic adapter."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter


@pytest.fixture
def adapter() -> AnthropicAdapter:
    return AnthropicAdapter()


@pytest.fixture
def encoder(decode_request: Any, start_encoder: Any) -> Any:
    """An encoder for a streamed or a whole response."""

    def make(stream: bool = True, **options: Any) -> Any:
        body = {"model": "a", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
        return start_encoder(decode_request("/v1/messages", body), **options)

    return make
