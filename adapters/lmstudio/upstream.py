"""LM Studio as a backend: requests in OpenAI's protocol, models from its own list."""

from __future__ import annotations

from collections.abc import Mapping

from hostler.adapters.lmstudio import discovery
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.remote_models import Discovery, RemoteModel


class LMStudioUpstream(OpenAIUpstream):
    """Requests are those of `OpenAIUpstream`."""

    def discover(self, known: Mapping[str, RemoteModel]) -> Discovery:
        return discovery.discover()
