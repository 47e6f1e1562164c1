"""Sessions of the page: what a cookie may stand for, and what it may not be used for."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from system.running_gateway import RunningGateway, StartGateway

from hostler.gateway.auth import keys
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.sessions import LASTS_S, Sessions

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html,*/*"}


def keyed(folder: Path, *scopes: keys.Scope) -> tuple[str, dict[str, str]]:
    """A key of these scopes, and the gateway's settings."""
    return keys.add(folder / "keys", "anna", scopes), {"api_keys_file": str(folder / "keys")}


async def login(gateway: RunningGateway, key: str) -> httpx.Response:
    """As a person does; the cookie stays in the client."""
    return await gateway.http.post("/ui/login", data={"key": key}, headers={"Origin": gateway.url})


def ours(gateway: RunningGateway) -> dict[str, str]:
    """What a browser says of requests of our own page."""
    return {"Origin": gateway.url, "Sec-Fetch-Site": "same-origin"}


async def test_a_browser_without_a_key_gets_the_login_form(start_gateway: StartGateway, tmp_path: Path) -> None:
    _, settings = keyed(tmp_path, "read")
    async with start_gateway({"secret-model": {}}, gateway=settings) as gateway:
        for path in ("/", "/ui", "/ui/"):
            answer = await gateway.http.get(path, headers=BROWSER)
            assert answer.status_code == 401
            assert 'name="key"' in answer.text
            assert "secret-model" not in answer.text
            rules = answer.headers["content-security-policy"]
            assert "unsafe" not in rules
            assert "frame-ancestors 'none'" in rules
        assert (await gateway.http.get("/ui/app.js")).status_code == 401


async def test_a_session_has_the_scopes_of_its_key(start_gateway: StartGateway, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "read", "infer")
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        answer = await login(gateway, key)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert key.lower() not in cookie
        assert (await gateway.http.get("/admin/status")).status_code == 200
        assert (await gateway.http.get("/ui/app.js")).status_code == 200
        assert (await gateway.http.post("/admin/load", json={"model": "a"}, headers=ours(gateway))).status_code == 403
        chat = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await gateway.http.post("/v1/chat/completions", json=chat, headers=ours(gateway))).status_code == 200


async def test_the_scope_operate_is_enough_for_the_page(start_gateway: StartGateway, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "operate")
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        assert (await login(gateway, key)).status_code == 303
        for path in ("/ui/", "/ui/app.js", "/admin/status", "/admin/history?kind=requests"):
            assert (await gateway.http.get(path)).status_code == 200, path
        assert (await gateway.http.post("/admin/load", json={"model": "a"}, headers=ours(gateway))).status_code == 200
        chat = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await gateway.http.post("/v1/chat/completions", json=chat, headers=ours(gateway))).status_code == 403


async def test_a_cookie_is_refused_from_other_origins(start_gateway: StartGateway, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "read", "infer", "operate")
    settings = {**settings, "cors_origins": ["https://friend.example"]}
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        await login(gateway, key)
        for headers in (
            {},  # no browser: a change by cookie needs an origin
            {"Origin": "https://evil.example"},
            {"Origin": "https://friend.example"},  # may call, but with a key of its own
            {"Origin": "null"},
            {"Sec-Fetch-Site": "same-site", "Origin": gateway.url},  # another port of this machine
            {"Sec-Fetch-Site": "cross-site"},
        ):
            answer = await gateway.http.post("/admin/load", json={"model": "a"}, headers=headers)
            assert answer.status_code in (401, 403), headers
        same_site = {"Sec-Fetch-Site": "same-site"}
        assert (await gateway.http.get("/admin/status", headers=same_site)).status_code == 401
        assert gateway.starts() == []


async def test_actions_by_cookie_need_json(start_gateway: StartGateway, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "operate", "read")
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        await login(gateway, key)
        headers = {**ours(gateway), "Content-Type": "text/plain"}
        answer = await gateway.http.post("/admin/load", content=b'{"model": "a"}', headers=headers)
        assert answer.status_code == 415


async def test_logout_invalidates_the_session(start_gateway: StartGateway, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "read")
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        answer = await login(gateway, key)
        copied = {"Cookie": re.split(r";", answer.headers["set-cookie"])[0]}
        assert (await gateway.http.post("/ui/logout", headers=ours(gateway))).status_code == 303
        gateway.http.cookies.clear()
        assert (await gateway.http.get("/admin/status", headers=copied)).status_code == 401


async def test_invalid_keys_are_refused_and_throttled(start_gateway: StartGateway, tmp_path: Path) -> None:
    _, settings = keyed(tmp_path, "read")
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        first = await login(gateway, "<b>wrong</b>")
        assert first.status_code == 401
        assert "<b>" not in first.text
        for _ in range(250):
            last = await gateway.http.post("/ui/login", json={"key": "wrong"}, headers={"Origin": gateway.url})
        assert last.status_code == 429


async def test_a_key_without_the_scope_read_cannot_log_in(start_gateway: StartGateway, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "infer")
    async with start_gateway({"a": {}}, gateway=settings) as gateway:
        answer = await login(gateway, key)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        assert "scope read" in answer.text


async def test_a_session_expires(tmp_path: Path) -> None:
    key, _ = keyed(tmp_path, "read")
    now = [0.0]
    sessions = Sessions(KeyRing(tmp_path / "keys", clock=lambda: now[0]), lambda: now[0])
    begun = sessions.begin(key)
    assert begun is not None
    assert sessions.client(begun[0]) is not None
    now[0] = LASTS_S + 1
    assert sessions.client(begun[0]) is None
    assert sessions.begin("wrong") is None


async def test_the_content_security_policy_allows_own_files_only(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = await gateway.http.get("/ui/", headers=BROWSER)
        rules = answer.headers["content-security-policy"]
        assert "default-src 'none'" in rules
        assert "script-src 'self'" in rules
        assert "style-src 'self'" in rules
        assert "unsafe" not in rules
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", answer.text)
        script = await gateway.http.get("/ui/app.js")
        unchanged = await gateway.http.get("/ui/app.js", headers={"If-None-Match": script.headers["etag"]})
        assert (script.status_code, unchanged.status_code) == (200, 304)
