"""Profiles for embeddings are listed as such in every protocol; a chat is left to their engine."""

from __future__ import annotations

import pytest
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

PROFILES = {"chat": {}, "vectors": {"embeddings": True}}


async def test_profiles_for_embeddings_are_listed_as_embedding_models_only(start_gateway: StartGateway) -> None:
    async with start_gateway(PROFILES) as gateway:

        async def listed(path: str, key: str) -> dict[str, dict[str, object]]:
            body = (await gateway.http.get(path, headers={"anthropic-version": "2023-06-01"})).json()
            return {str(entry[key]): entry for entry in body.get("models") or body["data"]}

        tags = await listed("/api/tags", "name")
        assert tags["vectors:latest"]["capabilities"] == ["embedding"]
        assert tags["chat:latest"]["capabilities"] == ["completion"]
        native = await listed("/api/v1/models", "key")
        assert (native["vectors"]["type"], native["chat"]["type"]) == ("embedding", "llm")
        older = await listed("/api/v0/models", "id")
        assert (older["vectors"]["type"], older["chat"]["type"]) == ("embeddings", "llm")
        assert gateway.starts() == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_chat_with_a_chat_models_profile_for_embeddings_is_served(
    start_gateway: StartGateway, path: str
) -> None:
    body = {"model": "vectors", "messages": [{"role": "user", "content": "Hello"}], "stream": False}
    async with start_gateway(PROFILES) as gateway:
        assert (await gateway.http.post(path, json=body)).status_code == 200
        assert gateway.starts() == ["vectors"]
