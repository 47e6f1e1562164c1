"""The checks of an outside tester. `CHECKS` names the tests of each; those that stand nowhere else are here."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from security.hostile_backend import CHATS, SECRET, BackendRequest, gateway_process, hostile_backend
from system.running_gateway import StartGateway

from hostler.gateway.auth import keys

TESTS = Path(__file__).parents[1]
SECURITY = "system/test_security.py::"
PROTOCOL = "gateway/server/test_http_protocol.py::"
HERE = "security/test_checks.py::"

CHECKS: dict[str, list[str]] = {
    "1 no key": [SECURITY + "test_without_a_key_only_health_is_open"],
    "2 every route": [SECURITY + "test_without_a_key_only_health_is_open"],
    "3 scopes": [SECURITY + "test_a_key_without_the_scope_is_refused_and_audited"],
    "4 keys stay secret": [
        SECURITY + "test_a_key_works_in_each_of_its_forms",
        HERE + "test_a_clients_key_appears_nowhere",
        "security/test_disclosure.py::test_neither_keys_nor_words_of_a_backend_leak",
    ],
    "5 Host": [
        SECURITY + "test_other_host_names_are_refused_on_every_route",
        HERE + "test_exactly_one_host_header_is_required",
    ],
    "6 Origin": [SECURITY + "test_foreign_pages_are_refused_on_every_route"],
    "7 odd origins": [
        SECURITY + "test_foreign_pages_are_refused_on_every_route",
        SECURITY + "test_origins_that_only_resemble_allowed_ones_are_refused",
    ],
    "8 plain text": [HERE + "test_routes_that_change_something_need_json_and_another_method_than_get"],
    "9 GET": [HERE + "test_routes_that_change_something_need_json_and_another_method_than_get"],
    "10 private network": [SECURITY + "test_a_configured_origin_may_read_answers_and_errors"],
    "11 no address from a request": [HERE + "test_nothing_in_a_request_changes_its_destination"],
    "12 credentials": [
        SECURITY + "test_a_clients_key_never_reaches_the_engine",
        HERE + "test_a_clients_credentials_do_not_reach_a_cloud",
    ],
    "13 nothing is fetched": [HERE + "test_nothing_that_a_request_names_is_fetched"],
    "14 redirects and headers": [
        "system/test_chain.py::test_falls_back_before_the_first_token",
        "system/test_chain.py::test_the_first_hop_receives_its_own_name_for_the_model",
    ],
    "15 names": [SECURITY + "test_malformed_names_are_unknown_and_reach_no_supervisor"],
    "16 body limit": [
        SECURITY + "test_an_oversized_body_is_refused",
        "gateway/middleware/test_request_context.py::test_a_body_that_is_not_read_closes_the_connection",
        "security/test_memory.py::test_requests_that_the_gateway_refuses_keep_no_memory",
    ],
    "17 JSON": [SECURITY + "test_invalid_json_is_refused_without_side_effects"],
    "18 slow clients": [
        PROTOCOL + "test_a_slow_head_ends",
        PROTOCOL + "test_a_slow_body_ends",
        PROTOCOL + "test_many_half_open_connections_end_and_others_are_served",
    ],
    "19 smuggling": [
        PROTOCOL + "test_what_two_readers_could_understand_differently_is_refused",
        PROTOCOL + "test_a_header_cannot_bring_further_headers",
    ],
    "20 flood": [HERE + "test_a_flood_is_bounded_and_leaves_nothing"],
    "21 dropped streams": [HERE + "test_streams_that_are_dropped_free_everything"],
    "22 guessed keys": [HERE + "test_guessed_keys_are_throttled"],
    "23 the page": [
        SECURITY + "test_the_page_escapes_untrusted_text",
        "system/test_login.py::test_the_content_security_policy_allows_own_files_only",
    ],
    "24 errors": ["security/test_disclosure.py::test_neither_keys_nor_words_of_a_backend_leak"],
    "25 supervisor": [
        *(
            f"supervisor/test_api.py::{name}"
            for name in (
                "test_rejects_requests_without_the_token",
                "test_takes_no_token_from_the_query",
                "test_rejects_a_foreign_host_name",
                "test_changes_state_on_post_only",
                "test_rejects_invalid_bodies",
                "test_an_unknown_model_is_an_error_that_lists_the_known_ones",
            )
        ),
        "supervisor/test_standalone.py::test_gateways_of_another_release_are_refused_with_a_word_for_their_log",
        "supervisor/test_lease_session.py::test_a_gateway_that_breaks_the_protocol_is_disconnected_alone_with_the_reason",
        "supervisor/test_lease_session.py::test_a_gateway_that_does_not_read_is_disconnected",
    ],
}


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_has_its_tests(check: str) -> None:
    for place in CHECKS[check]:
        file, _, name = place.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}, (
            place
        )


async def routes(gateway: Any) -> list[tuple[str, str]]:
    paths = (await gateway.http.get("/openapi.json")).json()["paths"]
    return [(method.upper(), path.replace("{id}", "a")) for path, entry in paths.items() for method in entry]


@pytest.mark.anyio
async def test_routes_that_change_something_need_json_and_another_method_than_get(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        found = await routes(gateway)
        actions = [path for method, path in found if path.startswith("/admin/") and method == "POST"]
        assert {"/admin/load", "/admin/unload"} <= set(actions)
        for path in actions:
            for method in ("GET", "HEAD"):
                # What a path has is shown by a route of its own, that of a model without anything as 404.
                allowed = {200, 404} if ("GET", path) in found else {405}
                assert (await gateway.http.request(method, path)).status_code in allowed, path
            plain = await gateway.http.post(path, content=b'{"model": "a"}', headers={"Content-Type": "text/plain"})
            assert plain.status_code == 415, path
            foreign = await gateway.http.post(path, json={"model": "a"}, headers={"Sec-Fetch-Site": "cross-site"})
            assert foreign.status_code == 403, path
        assert gateway.starts() == []


@pytest.mark.anyio
async def test_exactly_one_host_header_is_required(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        port = gateway.http.base_url.port
        assert port is not None
        for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host: \r\n"):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"GET /v1/models HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
                assert (await stream.receive()).startswith(b"HTTP/1.1 400 "), hosts


@pytest.mark.anyio
async def test_a_clients_key_appears_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "api-keys"
    key = keys.add(file, "bob", ["infer", "read", "operate"])
    async with hostile_backend() as backend:
        one = {"kind": "openai", "url": backend.url, "models": {"m": "m"}}
        async with gateway_process(tmp_path, {"one": one}, gateway={"api_keys_file": str(file)}) as gateway:
            for headers in (
                {"Authorization": f"Bearer {key}"},
                {"x-api-key": key},
                {"Authorization": f"Bearer {key}x"},
            ):
                for path, body in CHATS.values():
                    await gateway.http.post(path, json=body("m", "Hello", False), headers=headers, params={"k": key})
            bearer = {"Authorization": f"Bearer {key}"}
            for path in ("/admin/status", "/admin/history?kind=requests", "/metrics", "/admin/logs?follow=0", "/ui/"):
                assert key not in (await gateway.http.get(path, headers=bearer)).text, path
            assert key not in gateway.log
            assert key not in file.read_text()
            assert not any(key in str(request.headers) for request in backend.requests)


@pytest.mark.anyio
async def test_nothing_in_a_request_changes_its_destination(tmp_path: Path) -> None:
    async with hostile_backend() as backend, hostile_backend() as elsewhere:
        one = {"kind": "openai", "url": backend.url, "models": {"m": "m"}, "api_key": SECRET}
        async with gateway_process(tmp_path, {"one": one}) as gateway:
            url = elsewhere.url
            fields = {
                **dict.fromkeys(("api_base", "base_url", "url", "endpoint", "target"), url),
                "api_key": "x",
                "custom_llm_provider": "openai",
                "provider": {"url": url},
                "remote_host": url,
            }
            names = ("x-forwarded-host", "x-ollama-host", "x-upstream-host", "x-base-url", "forwarded")
            headers = dict.fromkeys(names, url.removeprefix("http://"))
            for path, body in CHATS.values():
                answer = await gateway.http.post(path, json={**body("m", "Hi", False), **fields}, headers=headers)
                assert answer.status_code in (200, 400), path
            assert backend.requests
            assert all(request.headers["authorization"] == f"Bearer {SECRET}" for request in backend.requests)
            assert elsewhere.requests == []


@pytest.mark.anyio
async def test_a_clients_credentials_do_not_reach_a_cloud(tmp_path: Path) -> None:
    async with hostile_backend() as backend:
        one = {"kind": "openai", "url": backend.url, "local": False, "models": {"m": "m"}, "api_key": SECRET}
        async with gateway_process(tmp_path, {"one": one}) as gateway:
            mine = {
                "Authorization": "Bearer client-secret",
                "x-api-key": "client-secret",
                "Cookie": "session=client-secret",
                "X-Forwarded-For": "203.0.113.7",
                "HTTP-Referer": "https://client-secret.example",
                "Referer": "https://client-secret.example",
            }
            for path, body in CHATS.values():
                await gateway.http.post(path, json=body("m", "Hi", False), headers=mine)
            assert backend.requests
            seen = str([request.headers for request in backend.requests])
            assert "client-secret" not in seen
            assert "203.0.113.7" not in seen


@pytest.mark.anyio
async def test_nothing_that_a_request_names_is_fetched(tmp_path: Path) -> None:
    async with hostile_backend() as backend, hostile_backend() as elsewhere:
        asked = []

        async def fetched(request: BackendRequest) -> None:
            asked.append(request.path)

        elsewhere.answer = fetched
        port = elsewhere.port
        urls = [
            f"http://127.0.0.1:{port}/a.png",
            f"http://2130706433:{port}/a.png",
            f"http://0177.0.0.1:{port}/a.png",
            f"http://[::ffff:127.0.0.1]:{port}/a.png",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
        ]
        for kind in ("openai", "anthropic", "ollama"):
            one = {"kind": kind, "url": backend.url, "models": {"m": "m"}}
            async with gateway_process(tmp_path, {"one": one}) as gateway:
                for url in urls:
                    picture = {"type": "image_url", "image_url": {"url": url}}
                    source = {"type": "image", "source": {"type": "url", "url": url}}
                    bodies = {
                        "/v1/chat/completions": {"messages": [{"role": "user", "content": [picture]}]},
                        "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": [source]}]},
                        "/api/chat": {"messages": [{"role": "user", "content": "x", "images": [url]}]},
                        "/v1/responses": {
                            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
                        },
                    }
                    for path, body in bodies.items():
                        answer = await gateway.http.post(path, json={"model": "m", "stream": False, **body})
                        assert "root:" not in answer.text
        assert asked == []
        assert not any(b"root:" in request.body for request in backend.requests)


@pytest.mark.anyio
async def test_a_flood_is_bounded_and_leaves_nothing(start_gateway: StartGateway, tmp_path: Path) -> None:
    profile = {"script": {"first_delay": 0.05, "queue": True}, "parallel": 1}
    async with start_gateway({"a": profile}, gateway={"queue": {"max_waiting": 5}}) as gateway:
        assert (await gateway.chat("a")).status_code == 200
        statuses: list[int] = []

        async def ask() -> None:
            answer = await gateway.chat("a")
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                assert answer.status_code in (429, 503)
                assert int(answer.headers["retry-after"]) >= 1

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(ask)
        assert 1 <= statuses.count(200) <= 20
        await gateway.until_counts(0, 0)
        assert (await gateway.chat("a")).status_code == 200


@pytest.mark.anyio
async def test_streams_that_are_dropped_free_everything(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"chunks": 50, "chunk_delay": 0.01}, "parallel": 4}}) as gateway:

        async def drop(after: int) -> None:
            async with gateway.stream("a") as answer:
                lines = answer.aiter_lines()
                for _ in range(after):
                    await anext(lines, "")

        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(drop, number * 3)
        await gateway.until_counts(0, 0)
        assert (await gateway.chat("a")).status_code == 200


@pytest.mark.anyio
async def test_a_missing_key_is_answered_like_a_wrong_one_and_takes_as_long(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Among so many keys that looking through them takes most of the time."""
    file = tmp_path / "keys"
    record = {"scopes": ["infer"], "created": 0}
    file.write_text("".join(json.dumps({"name": f"k{n}", "hash": f"{n:064x}", **record}) + "\n" for n in range(10_000)))
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(file)}) as gateway:
        seconds: dict[str, list[float]] = {"missing": [], "wrong": []}
        answers = {}
        for _ in range(8):  # fewer than are throttled
            for kind, headers in (("missing", {}), ("wrong", {"Authorization": "Bearer hk_wrong"})):
                began = time.process_time()
                answer = answers[kind] = await gateway.http.get("/v1/models", headers=headers)
                seconds[kind].append(time.process_time() - began)
                assert answer.status_code == 401, answer.text
        missing, wrong = answers["missing"], answers["wrong"]
        assert missing.json() == wrong.json()
        assert missing.headers.keys() == wrong.headers.keys()
        # CPU time, which other programs do not use up.
        assert 0.7 < min(seconds["missing"]) / min(seconds["wrong"]) < 1.4, seconds


@pytest.mark.anyio
async def test_guessed_keys_are_throttled(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"])
    async with start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway:
        statuses = []
        for number in range(300):
            answer = await gateway.http.get("/v1/models", headers={"Authorization": f"Bearer guess-{number}"})
            statuses.append(answer.status_code)
        assert statuses[0] == 401
        assert statuses[-1] == 429
        assert int(answer.headers["retry-after"]) >= 1
        # The valid key works all the same: many clients may share the address.
        assert (await gateway.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code == 200
