"""Who is let in: host names, origins, keys and scopes, on every route."""

from __future__ import annotations

import base64
from pathlib import Path

import anyio
import httpx
import pytest
from system.running_gateway import RunningGateway, StartGateway

from hostler.gateway.app import Gateway
from hostler.gateway.auth import keys
from hostler.gateway.config import ConfigError
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.settings import Settings

pytestmark = pytest.mark.anyio


async def routes(gateway: RunningGateway, key: str | None = None) -> list[tuple[str, str]]:
    """Every method and path of the description."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    paths = (await gateway.http.get("/openapi.json", headers=headers)).json()["paths"]
    return [(method.upper(), path.replace("{id}", "a")) for path, entry in paths.items() for method in entry]


async def test_without_a_key_only_health_is_open(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer", "read"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        for method, path in await routes(gateway, key):
            if path == "/healthz":
                continue
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                answer = await gateway.http.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert method == "HEAD" or "error" in answer.json()
                assert answer.headers["x-request-id"]
        assert (await gateway.http.get("/no/such/path")).status_code == 401
        health = await gateway.http.get("/healthz")
        assert health.json() == {"status": "ok"}


async def test_a_key_works_in_each_of_its_forms(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        for headers in (
            {"Authorization": f"Bearer {key}"},
            {"Authorization": f"Basic {basic}"},
            {"x-api-key": key},
        ):
            assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200
        assert (await gateway.http.get("/v1/models", params={"api_key": key})).status_code == 401


async def test_a_key_without_the_scope_is_refused_and_audited(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        answer = await gateway.http.post(
            "/admin/unload", json={"model": "a"}, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 403
    assert any(record.name == "hostler.audit" and "bob" in record.message for record in caplog.records)


async def test_a_clients_key_never_reaches_the_engine(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        headers = {"Authorization": f"Bearer {key}", "Cookie": "secret=1", "X-Forwarded-For": "1.2.3.4"}
        body = {"model": "a", "messages": []}
        assert (await gateway.http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
        seen = [note["headers"] for note in gateway.events("request") if "completions" in note["path"]][-1]
    assert key not in str(seen)
    assert "secret" not in str(seen)
    assert "1.2.3.4" not in str(seen)


async def test_other_host_names_are_refused_on_every_route(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway={"allowed_hosts": ["llm.lan"]}) as gateway:
        for method, path in await routes(gateway):
            answer = await gateway.http.request(method, path, headers={"Host": "evil.example"})
            assert answer.status_code == 421, (method, path)
        for name in ("llm.lan", "localhost:1234", "127.0.0.1"):
            assert (await gateway.http.get("/v1/models", headers={"Host": name})).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "file://", "chrome-extension://x", "http://localhost.evil.example"]
)
async def test_foreign_pages_are_refused_on_every_route(start_gateway: StartGateway, origin: str) -> None:
    async with start_gateway({"a": {}}) as gateway:
        for method, path in await routes(gateway):
            for verb in (method, "OPTIONS"):
                answer = await gateway.http.request(verb, path, headers={"Origin": origin})
                assert answer.status_code == 403, (verb, path)
                assert not [name for name in answer.headers if name.startswith("access-control")]
        assert gateway.starts() == []


async def test_a_configured_origin_may_read_answers_and_errors(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway={"cors_origins": ["https://ui.lan"]}) as gateway:
        headers = {"Origin": "https://ui.lan"}
        preflight = await gateway.http.options(
            "/v1/chat/completions",
            headers={**headers, "Access-Control-Request-Headers": "authorization, x-ok, bad header"},
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization, x-ok"
        assert "access-control-allow-private-network" not in preflight.headers
        for answer in (
            await gateway.http.get("/v1/models", headers=headers),
            await gateway.http.get("/v1/models/none", headers=headers),
        ):
            assert answer.headers["access-control-allow-origin"] == "https://ui.lan"


LOCAL_PAGES = [
    "http://localhost:3000", "https://127.0.0.1", "http://0.0.0.0:8080", "app://obsidian.md", "tauri://localhost",
    "vscode-webview://1abc", "vscode-file://vscode-app",
]  # fmt: skip


async def test_origins_that_ollama_allows_may_call_models_routes_only(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for origin in LOCAL_PAGES:
            headers = {"Origin": origin}
            preflight = await gateway.http.options("/api/chat", headers=headers)
            assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, origin)
            for path, status in (
                ("/api/tags", 200),
                ("/api/nothing", 404),
                ("/v1/models", 200),
                ("/api/v1/models", 200),
            ):
                answer = await gateway.http.get(path, headers=headers)
                assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, origin)
            for path in ("/admin/status", "/ui/", "/metrics", "/healthz", "/openapi.json"):
                answer = await gateway.http.get(path, headers=headers)
                assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (403, None), path
            elsewhere = await gateway.http.get("/api/tags", headers={**headers, "Host": "evil.example"})
            assert elsewhere.status_code == 421
            form = await gateway.http.post(
                "/api/copy", content=b"{}", headers={**headers, "Content-Type": "text/plain"}
            )
            assert form.status_code == 415


@pytest.mark.parametrize(
    "origin", ["http://tauri.localhost", "http://localhost.evil.example", "http://localhost:x", "http://LOCALHOST@evil",
               "app:x", "http://127.0.0.1.evil.example", "moz-extension://x"],
)  # fmt: skip
async def test_origins_that_only_resemble_allowed_ones_are_refused(start_gateway: StartGateway, origin: str) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = await gateway.http.get("/api/tags", headers={"Origin": origin})
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (403, None)


async def test_actions_require_json_and_a_method_other_than_get(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        for path in ("/admin/load", "/admin/unload"):
            assert (await gateway.http.get(path)).status_code == 405
            plain = await gateway.http.post(path, content=b'{"model": "a"}', headers={"Content-Type": "text/plain"})
            assert plain.status_code == 415
            foreign = await gateway.http.post(path, json={"model": "a"}, headers={"Sec-Fetch-Site": "cross-site"})
            assert foreign.status_code == 403
        assert gateway.starts() == []


async def test_an_oversized_body_is_refused(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway={"max_body": "1KiB"}) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", content=b"x" * 2000)
        assert answer.status_code == 413

        async def endless() -> object:
            while True:
                yield b"x" * 512

        try:
            chunked = await gateway.http.post("/v1/chat/completions", content=endless())
        except httpx.TransportError:
            return  # closed while we were still sending
        assert chunked.status_code == 413


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/../b", "%2e%2e", "nul\x00", "x" * 10_000, "<img src=x>", "\u202ea"]
)
async def test_malformed_names_are_unknown_and_reach_no_supervisor(start_gateway: StartGateway, name: str) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = await gateway.chat(name)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 2000
        assert gateway.starts() == []


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"{" + b",".join(b'"k%d":1' % number for number in range(200_000)) + b"}",
        b'{"model":"a","model":"b","messages":[]}',
        b'{"model":"a","temperature":NaN,"messages":[]}',
        b'{"model":"\\ud800","messages":[]}',
        b"[]",
        b"",
        b"{",
    ],
)
async def test_invalid_json_is_refused_without_side_effects(start_gateway: StartGateway, body: bytes) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert gateway.starts() == []


async def test_the_page_escapes_untrusted_text(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"description": "<img src=x onerror=alert(1)>"}}) as gateway:
        page = await gateway.http.get("/ui/", headers={"Accept": "text/html"})
        assert "<img src=x" not in page.text
        assert "&lt;img src=x" in page.text
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "unsafe-inline" not in page.headers["content-security-policy"]


async def test_listening_beyond_loopback_requires_keys(tmp_path: Path) -> None:
    settings = Settings(gateway=GatewaySettings(listen=("0.0.0.0:8000",), api_keys_file=str(tmp_path / "keys")))
    with pytest.raises(ConfigError, match="hostler keys add"):
        Gateway(settings)
    keys.add(tmp_path / "keys", "bob", ["infer"])
    Gateway(settings)


async def test_a_revoked_key_is_refused_on_an_open_connection(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    keys.add(tmp_path / "keys", "eve", ["infer"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        for _ in range(3):
            assert (await gateway.chat("a", key=key)).status_code == 200
        assert keys.revoke(tmp_path / "keys", "bob")
        with anyio.fail_after(20):
            while (await gateway.chat("a", key=key)).status_code != 401:  # noqa: ASYNC110 - a file
                await anyio.sleep(0.05)


async def test_all_requests_are_refused_once_the_last_key_is_revoked(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer", "read"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        login = await gateway.http.post("/ui/login", json={"key": key})
        assert login.status_code == 200
        assert keys.revoke(tmp_path / "keys", "bob")
        held = {"Authorization": f"Bearer {key}"}
        with anyio.fail_after(20):
            while (await gateway.http.get("/v1/models", headers=held)).status_code != 401:  # noqa: ASYNC110 - a file
                await anyio.sleep(0.05)
        assert (await gateway.http.get("/admin/status")).status_code == 401
        gateway.http.cookies.clear()
        for headers in ({}, held, {"x-api-key": ""}):
            assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 401
        new = keys.add(tmp_path / "keys", "eve", ["infer", "read"])
        with anyio.fail_after(20):
            while (await gateway.chat("a", key=new)).status_code != 200:  # noqa: ASYNC110 - a file
                await anyio.sleep(0.05)
