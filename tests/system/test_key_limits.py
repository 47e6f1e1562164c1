"""Keys with limits, in every protocol and over restarts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from system.running_gateway import StartGateway

from hostler.gateway.auth import keys
from hostler.gateway.context import KeyRules
from hostler.gateway.key_usage import read_figures

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Hello"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "a", "messages": MESSAGES},
    "/v1/messages": {"model": "a", "max_tokens": 50, "messages": MESSAGES},
    "/api/chat": {"model": "a", "stream": False, "messages": MESSAGES},
    "/api/v0/chat/completions": {"model": "a", "messages": MESSAGES},
    "/completion": {"model": "a", "prompt": "Hello"},
}


def settings(folder: Path) -> dict[str, str]:
    return {"api_keys_file": str(folder / "keys"), "key_usage_file": str(folder / "usage.json")}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_every_protocol_counts_and_says_what_is_left(start_gateway: StartGateway, tmp_path: Path) -> None:
    rules = KeyRules(requests_per_minute=len(REQUESTS), tokens_per_day=100_000)
    key = keys.add(tmp_path / "keys", "bob", ["infer"], rules=rules)
    free = keys.add(tmp_path / "keys", "eve", ["infer"])
    async with start_gateway({"a": {}}, gateway=settings(tmp_path)) as gateway:
        remaining = len(REQUESTS)
        for path, body in REQUESTS.items():
            answer = await gateway.http.post(path, json=body, headers=bearer(key))
            remaining -= 1
            assert answer.status_code == 200, path
            assert answer.headers["x-ratelimit-limit-requests"] == str(len(REQUESTS))
            assert answer.headers["x-ratelimit-remaining-requests"] == str(remaining)
            assert ("anthropic-ratelimit-tokens-limit" in answer.headers) is (path == "/v1/messages")
        for path, body in REQUESTS.items():
            answer = await gateway.http.post(path, json=body, headers=bearer(key))
            assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (429, "0"), path
            assert 1 <= int(answer.headers["retry-after"]) <= 61
            assert "requests per minute" in answer.text
            other = await gateway.http.post(path, json=body, headers=bearer(free))
            assert (other.status_code, "x-ratelimit-limit-requests" in other.headers) == (200, False)
        # Lists of models are not counted.
        assert (await gateway.http.get("/v1/models", headers=bearer(key))).status_code == 200
    figures = read_figures(tmp_path / "usage.json", time.time())["bob"]
    assert figures.requests == len(REQUESTS)
    assert figures.tokens > len(REQUESTS)
    assert figures.reserved_tokens == 0
    async with start_gateway({"a": {}}, gateway=settings(tmp_path)) as gateway:
        assert (await gateway.chat("a", key=key)).status_code == 429


async def test_streams_are_counted_even_if_their_client_leaves(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"], rules=KeyRules(tokens_per_day=100_000))
    async with start_gateway(
        {"a": {"script": {"chunks": 500, "chunk_delay": 0.01}}}, gateway=settings(tmp_path)
    ) as gateway:
        async with gateway.stream("a", key=key) as answer:
            assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
            async for line in answer.aiter_lines():
                if "word3" in line:
                    break
        await gateway.until(lambda: gateway.app.status().in_flight == ())
    assert 0 < read_figures(tmp_path / "usage.json", time.time())["bob"].tokens < 500


async def test_a_key_sees_and_uses_its_models_only(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer", "read"], rules=KeyRules(models=("A*",)))
    async with start_gateway({"a": {}, "secret": {"aliases": ["abc"]}}, gateway=settings(tmp_path)) as gateway:
        for path in ("/v1/models", "/api/tags", "/api/v0/models", "/api/v1/models", "/models"):
            listing = await gateway.http.get(path, headers=bearer(key))
            assert (listing.status_code, "secret" in listing.text) == (200, False), path
        assert (await gateway.http.get("/v1/models/secret", headers=bearer(key))).status_code == 404
        for name, status in (("a", 200), ("secret", 403), ("abc", 403), ("none", 404)):
            answer = await gateway.chat(name, key=key)
            assert (answer.status_code, "secret" in answer.text) == (status, False), name
        assert gateway.starts("secret") == []


async def test_only_the_scope_read_shows_models_that_a_key_may_not_use(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    rules = KeyRules(models=("a",))
    reader = keys.add(tmp_path / "keys", "bob", ["infer", "read"], rules=rules)
    user = keys.add(tmp_path / "keys", "eve", ["infer"], rules=rules)
    async with start_gateway({"a": {}, "secret": {}}, gateway=settings(tmp_path)) as gateway:
        for path in ("/admin/status", "/admin/backends", "/admin/route?model=secret", "/metrics", "/admin/history"):
            assert (await gateway.http.get(path, headers=bearer(reader))).status_code == 200, path
            assert (await gateway.http.get(path, headers=bearer(user))).status_code == 403, path
        assert "secret" in (await gateway.http.get("/admin/status", headers=bearer(reader))).text
        assert "secret" not in (await gateway.http.get("/v1/models", headers=bearer(user))).text


async def test_a_key_ends_at_its_time(start_gateway: StartGateway, tmp_path: Path) -> None:
    ended = keys.add(tmp_path / "keys", "bob", ["infer"], expires=int(time.time()) - 1)
    valid = keys.add(tmp_path / "keys", "eve", ["infer"], expires=int(time.time()) + 3600)
    async with start_gateway({"a": {}}, gateway=settings(tmp_path)) as gateway:
        refused = await gateway.chat("a", key=ended)
        assert (refused.status_code, "expired" in refused.text) == (401, True)
        for _ in range(2):
            assert (await gateway.chat("a", key=valid)).status_code == 200
        assert keys.change(tmp_path / "keys", "eve", expires=int(time.time()) - 1)
        with anyio.fail_after(20):
            while (await gateway.chat("a", key=valid)).status_code == 200:  # the file is looked at once a second
                pass
        assert (await gateway.chat("a", key=valid)).status_code == 401


async def test_operators_see_keys_without_their_hashes(start_gateway: StartGateway, tmp_path: Path) -> None:
    boss = keys.add(tmp_path / "keys", "boss", ["read", "operate"], note="mine")
    bob = keys.add(tmp_path / "keys", "bob", ["infer", "read"], rules=KeyRules(requests_per_minute=5))
    async with start_gateway({"a": {}}, gateway=settings(tmp_path)) as gateway:
        await gateway.chat("a", key=bob)
        answer = await gateway.http.get("/admin/keys", headers=bearer(boss))
        first, second = answer.json()
        assert (first["name"], first["note"], first["used"]) == ("boss", "mine", None)
        assert (second["rules"], second["used"]["requests"]) == ({"requests_per_minute": 5}, 1)
        assert "hash" not in answer.text
        assert (await gateway.http.get("/admin/keys", headers=bearer(bob))).status_code == 403
