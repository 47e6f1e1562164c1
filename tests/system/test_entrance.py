"""The entrance is the same for all protocols: origins, host names, spellings of paths, and forms of bodies."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
from system.running_gateway import StartGateway

from hostler.gateway.auth import keys
from hostler.gateway.events import RequestFinished

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Hello"}]
#: A request for a model in each protocol.
REQUESTS = {
    "/v1/chat/completions": {"model": "a", "messages": MESSAGES},
    "/v1/responses": {"model": "a", "input": "Hello"},
    "/v1/messages": {"model": "a", "max_tokens": 5, "messages": MESSAGES},
    "/api/chat": {"model": "a", "stream": False, "messages": MESSAGES},
    "/api/v0/chat/completions": {"model": "a", "messages": MESSAGES},
    "/completion": {"model": "a", "prompt": "Hello"},
}
LISTS = ["/v1/models", "/api/tags", "/api/v0/models", "/api/v1/models", "/props"]
LOCAL_PAGES = ["http://localhost:3000", "https://127.0.0.1", "app://obsidian.md", "vscode-webview://1abc"]
FOREIGN_PAGES = ["null", "file://", "https://evil.example", "http://localhost.evil.example"]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


async def test_local_pages_may_call_every_protocol_where_no_key_is_needed(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for origin in LOCAL_PAGES:
            headers = {"Origin": origin}
            for path, body in REQUESTS.items():
                preflight = await gateway.http.options(path, headers=headers)
                answer = await gateway.http.post(path, json=body, headers=headers)
                assert (preflight.status_code, answer.status_code) == (204, 200), (origin, path)
                for each in (preflight, answer):
                    assert each.headers["access-control-allow-origin"] == origin
                    assert "access-control-allow-credentials" not in each.headers
            for path in LISTS:
                assert (await gateway.http.get(path, headers=headers)).status_code == 200, (origin, path)
            for path in ("/admin/status", "/ui/", "/metrics", "/events"):
                assert (await gateway.http.get(path, headers=headers)).status_code == 403, (origin, path)
            form = await gateway.http.post(
                "/models/unload", content=b'{"model": "a"}', headers={**headers, "Content-Type": "text/plain"}
            )
            assert form.status_code == 415


async def test_foreign_pages_may_call_no_protocol(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for origin in FOREIGN_PAGES:
            for path, body in REQUESTS.items():
                answer = await gateway.http.post(path, json=body, headers={"Origin": origin})
                assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (403, None)
        assert gateway.starts() == []


async def test_where_keys_are_needed_local_pages_have_to_be_listed(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    settings = {"api_keys_file": str(tmp_path / "keys"), "cors_origins": ["http://localhost:5000"]}
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        for origin, status in (("http://localhost:3000", 403), ("http://localhost:5000", 200)):
            headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
            assert (await gateway.http.get("/v1/models", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("10.9.8.7:8000", 200),
        ("[fd00::7]", 200),
        ("host.docker.internal:8000", 200),
        ("box.local", 200),
        ("llm.home.example", 200),
        ("home.example", 421),
        ("evil.example", 421),
        ("host.docker.internal.evil.example", 421),
    ],
)
async def test_names_that_cannot_be_bound_again_are_its_own(
    start_gateway: StartGateway, host: str, status: int
) -> None:
    async with start_gateway({"a": {}}, gateway={"allowed_hosts": ["*.home.example"]}) as gateway:
        for path in LISTS:
            assert (await gateway.http.get(path, headers={"Host": host})).status_code == status, path


async def test_a_path_may_have_more_slashes_than_needed(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for path in ("//v1/chat/completions", "/v1//chat/completions", "///v1/messages", "//completion"):
            body = REQUESTS["/v1/messages"]
            for _ in range(2):
                answer = await gateway.http.post(f"{gateway.url}{path}", json={**body, "prompt": "Hello"})
                assert answer.status_code == 200, path
        assert (await gateway.http.get(f"{gateway.url}//v1/models")).json()["data"][0]["id"] == "a"
        assert (await gateway.http.get(f"{gateway.url}//admin//status")).status_code == 200
        assert (await gateway.http.get(f"{gateway.url}//v1/nothing")).status_code == 404
        # Ollama redirects instead.
        assert (await gateway.http.get(f"{gateway.url}//api/tags")).status_code == 307


@pytest.mark.parametrize("coding", PACK)
async def test_every_protocol_takes_compressed_bodies(start_gateway: StartGateway, coding: str) -> None:
    async with start_gateway({"a": {}}, gateway={"max_body": "1MiB"}) as gateway:
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        for path, body in REQUESTS.items():
            packed = PACK[coding](b"\xef\xbb\xbf" + json.dumps(body).encode())
            answer = await gateway.http.post(path, content=packed, headers=headers)
            assert answer.status_code == 200, (path, answer.text)
            bomb = PACK[coding](json.dumps({**body, "more": "x" * 2**20}).encode())
            assert (await gateway.http.post(path, content=bomb, headers=headers)).status_code == 413, path
            assert (await gateway.http.post(path, content=packed[:-1], headers=headers)).status_code == 400, path
        action = await gateway.http.post("/admin/load", content=PACK[coding](b'{"model": "a"}'), headers=headers)
        assert action.status_code == 200


async def test_an_unknown_coding_is_refused(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        for path in (*REQUESTS, "/admin/load"):
            headers = {"Content-Type": "application/json", "Content-Encoding": "compress"}
            answer = await gateway.http.post(path, content=b"{}", headers=headers)
            assert (answer.status_code, "gzip, deflate, br, zstd" in answer.text) == (415, True), path
        # A file is stored under the digest of its bytes.
        upload = await gateway.http.post(
            f"/api/blobs/sha256:{'0' * 64}", content=gzip.compress(b"x"), headers={"Content-Encoding": "gzip"}
        )
        assert upload.status_code == 415


@pytest.mark.parametrize("half", [b"\\ud800", b"\\uDFFF", b"\xed\xa0\x80"])
async def test_half_a_surrogate_pair_has_the_same_answer_everywhere(start_gateway: StartGateway, half: bytes) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for path, body in REQUESTS.items():
            for place in (body | {"more": {"x": ["HALF"]}}, json.loads(json.dumps(body).replace("Hello", "HALF"))):
                content = json.dumps(place).encode().replace(b"HALF", half)
                answer = await gateway.http.post(path, content=content, headers={"Content-Type": "application/json"})
                assert (answer.status_code, "lone surrogate" in answer.text) == (400, True), path
        assert gateway.starts() == []


async def test_the_page_and_the_protocols_are_served_below_a_path(start_gateway: StartGateway) -> None:
    settings = {"root_path": "/llm", "trusted_proxies": ["127.0.0.1"]}
    async with start_gateway({"a": {"default": True}}, gateway=settings) as gateway:
        for prefix in ("", "/llm"):
            for path, body in REQUESTS.items():
                assert (await gateway.http.post(prefix + path, json=body)).status_code == 200, prefix + path
            for path in (*LISTS, "/healthz", "/ui/", "/admin/status"):
                assert (await gateway.http.get(prefix + path)).status_code == 200, prefix + path
        page = await gateway.http.get("/llm/ui")
        assert (page.status_code, page.headers["location"]) == (307, "/llm/ui/")
        same = await gateway.http.get(
            "/llm/admin/status",
            headers={"Host": "localhost", "Origin": "https://localhost", "X-Forwarded-Proto": "https"},
        )
        assert same.status_code == 200


async def test_clients_are_named_by_the_address_that_a_trusted_proxy_gives(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway={"trusted_proxies": ["127.0.0.0/8"]}) as gateway:
        clients: list[str] = []
        gateway.app.bus.listen(
            lambda event: clients.append(event.client) if isinstance(event, RequestFinished) else None
        )
        for address in ("203.0.113.7", "203.0.113.7", "203.0.113.8", "203.0.113.7"):
            headers = {"X-Forwarded-For": f"198.51.100.1, {address}"}
            await gateway.http.post("/v1/chat/completions", json=REQUESTS["/v1/chat/completions"], headers=headers)
        assert clients == ["203.0.113.7", "203.0.113.7", "203.0.113.8", "203.0.113.7"]
