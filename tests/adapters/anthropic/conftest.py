"""The fixtures of the other protocols' tests, with the Anthropic adapter."""

from __future__ import annotations

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter


@pytest.fixture
def adapter() -> AnthropicAdapter:
    return AnthropicAdapter()
