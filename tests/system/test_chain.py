"""The chain on sockets: a remote backend that fails in every way, and a local one to fall back to."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.fake_openrouter import COST, SECRET_WORDS, FakeOpenRouter
from system.fallback_chain import IMPATIENT, answer_text, error_in, fact, openai_backend, start_chain

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio

ALL = "".join(("One", " two", " three"))


def pair(cloud: FakeOpenRouter, lan: FakeOpenRouter, **more: Any) -> dict[str, Any]:
    return {"cloud": openai_backend(cloud, local=False, api_key="sk-or-secret", **more), "lan": openai_backend(lan)}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_hop_receives_its_own_name_for_the_model(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter, stream: bool
) -> None:
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        response = await chain.chat(stream=stream)
        assert answer_text(response) == f"cloud:{ALL}"
        assert cloud.requests[0].path == "/api/v1/chat/completions"
        assert cloud.requests[0].json["model"] == "cloud/m"
        assert response.headers["x-hostler-backend"] == "cloud"
        assert response.headers["x-hostler-hop"] == "0"
        assert "x-hostler-reason" not in response.headers
        assert not {"set-cookie", "access-control-allow-origin"} & set(response.headers)
        assert chain.finished[0].cost == COST
        assert [each.outcome for each in chain.finished[0].attempts] == ["answered"]


# What the cloud does, what becomes of it, and how often it is asked.
BEFORE_THE_FIRST_WORD = [
    ("error_in_200", "server_error", 2),
    ("error_after_role", "server_error", 2),
    ("reset", "server_error", 2),
    ("garbage", "server_error", 2),
    ("redirect", "server_error", 2),
    ((500,), "server_error", 2),
    ((502,), "server_error", 2),
    ((504,), "server_error", 2),
    ((503,), "server_error", 2),
    ((429, "0.05"), "busy", 2),
    ((429, "60"), "busy", 1),
    ((429,), "busy", 1),
    ((503, "60"), "busy", 1),
    ((402, "60"), "busy", 1),
    ((401,), "auth_failed", 1),
    ((403,), "auth_failed", 1),
    ((402,), "payment_required", 1),
    ((404,), "rejected", 1),
    ("flagged", "rejected", 1),
    ("stall", "first_byte_timeout", 1),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("behaviour", "outcome", "times"), BEFORE_THE_FIRST_WORD)
async def test_falls_back_before_the_first_token(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter, behaviour: Any, outcome: str, times: int, stream: bool
) -> None:
    cloud.default = behaviour
    async with start_chain(tmp_path, pair(cloud, lan), gateway=IMPATIENT if behaviour == "stall" else {}) as chain:
        response = await chain.chat(stream=stream)
        assert response.status_code == 200
        assert answer_text(response) == f"lan:{ALL}"
        assert fact(response, "x-hostler-backend") == "lan"
        assert fact(response, "x-hostler-hop") == "1"
        assert fact(response, "x-hostler-reason") == f"cloud: {outcome}"
        assert len(cloud.requests) == times
        attempts = [(each.backend, each.outcome) for each in chain.finished[0].attempts]
        assert attempts == [("cloud", outcome)] * times + [("lan", "answered")]


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [("in_band_402", "payment_required"), ("in_band_429", "busy"), ("only_processing", "first_byte_timeout")],
)
async def test_errors_and_silence_inside_a_stream_are_classified(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter, behaviour: str, outcome: str
) -> None:
    cloud.default = behaviour
    settings = {"timeouts": {"first_token_s": 0.5}} if behaviour == "only_processing" else {}
    async with start_chain(tmp_path, pair(cloud, lan), gateway=settings) as chain:
        response = await chain.chat(stream=True)
        assert answer_text(response) == f"lan:{ALL}"
        assert fact(response, "x-hostler-reason") == f"cloud: {outcome}"


async def test_keep_alive_comments_start_no_answer(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    cloud.script = ["processing", "error_in_200", "error_in_200"]
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        response = await chain.chat(stream=True)
        assert answer_text(response) == f"cloud:{ALL}"
        assert response.text.index("OPENROUTER") < response.text.index("data:")
        response = await chain.chat(stream=True)
        assert answer_text(response) == f"lan:{ALL}"
        assert "OPENROUTER" not in response.text


@pytest.mark.parametrize(
    "behaviour", ["error_after_words", "cut_after_words", "reset_after_words", "stall_after_words"]
)
async def test_does_not_fall_back_after_the_first_token_and_shows_the_break(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter, behaviour: str
) -> None:
    cloud.default = behaviour
    settings = IMPATIENT if behaviour == "stall_after_words" else {}
    async with start_chain(tmp_path, pair(cloud, lan), gateway=settings) as chain:
        response = await chain.chat(stream=True)
        assert answer_text(response) == "cloud:One"
        error = error_in(response)
        assert error is not None
        assert SECRET_WORDS not in response.text
        assert lan.requests == []
        assert len(cloud.requests) == 1
        assert chain.finished[0].outcome == "broken"
        assert [each.outcome for each in chain.finished[0].attempts] == ["broken"]


async def test_a_complete_stream_is_whole_even_if_its_connection_breaks_then(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    cloud.default = "break_when_done"
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        response = await chain.chat(stream=True)
        assert answer_text(response) == f"cloud:{ALL}"
        assert error_in(response) is None
        assert response.text.count("[DONE]") == 1
        assert chain.finished[0].outcome == "ok"
        assert [each.outcome for each in chain.finished[0].attempts] == ["answered"]


@pytest.mark.parametrize("status", [400, 422])
async def test_an_invalid_request_does_not_fall_back(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter, status: int
) -> None:
    cloud.default = (status,)
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        response = await chain.chat()
        assert response.status_code == status
        assert lan.requests == []
        for secret in (*SECRET_WORDS.split(), "user_secret"):
            assert secret not in response.text


async def test_a_local_backends_rejection_is_passed_on_unchanged(tmp_path: Path, lan: FakeOpenRouter) -> None:
    lan.default = "too_long"
    async with start_chain(tmp_path, {"lan": openai_backend(lan)}) as chain:
        response = await chain.chat()
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "exceed_context_size_error"


async def test_a_long_prompt_falls_back_to_a_larger_context(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    lan.default = "too_long"
    backends = {"lan": openai_backend(lan, context=4096), "cloud": openai_backend(cloud, local=False, context=131072)}
    async with start_chain(tmp_path, backends) as chain:
        response = await chain.chat()
        assert answer_text(response) == f"cloud:{ALL}"
        assert response.headers["x-hostler-reason"] == "lan: rejected"
        lan.requests.clear()
        response = await chain.chat(messages=[{"role": "user", "content": "word " * 20000}])
        assert answer_text(response) == f"cloud:{ALL}"
        assert response.headers["x-hostler-reason"] == "lan: too_long"
        assert lan.requests == []


async def test_a_loading_backend_is_waited_for(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    lan.script = ["loading", "loading"]
    switching = {"progress_after_s": 0, "progress_every_s": 0.1}
    async with start_chain(
        tmp_path, {"lan": openai_backend(lan), "cloud": openai_backend(cloud)}, gateway={"switching": switching}
    ) as chain:
        response = await chain.chat(stream=True)
        assert answer_text(response) == f"lan:{ALL}"
        assert "loading" in response.text
        assert cloud.requests == []


async def test_falls_back_from_a_backend_that_loads_for_too_long(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    lan.default = "loading"
    backends = {"lan": openai_backend(lan), "cloud": openai_backend(cloud)}
    async with start_chain(tmp_path, backends, gateway={"queue": {"max_wait_s": 0.6}}) as chain:
        response = await chain.chat()
        assert answer_text(response) == f"cloud:{ALL}"
        assert response.headers["x-hostler-reason"] == "lan: loading"


async def test_headers_are_as_configured_and_client_headers_are_not_forwarded(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    backends = pair(cloud, lan, referer="https://site.example", title="Our site")
    async with start_chain(tmp_path, backends) as chain:
        headers = {
            "Authorization": "Bearer of-the-client", "Cookie": "a=b", "X-Forwarded-For": "10.1.2.3",
            "HTTP-Referer": "https://client.example", "X-Title": "client", "User-Agent": "client/1",
        }  # fmt: skip
        await chain.chat(
            headers=headers, api_base="http://evil.example", api_key="sk-evil", provider={"url": "http://e"}
        )
        cloud.default = (500,)
        await chain.chat(headers=headers)
        sent = cloud.requests[0].headers
        assert sent["authorization"] == "Bearer sk-or-secret"
        assert sent["http-referer"] == "https://site.example"
        assert sent["x-title"] == "Our site"
        for asked in (*cloud.requests, *lan.requests):
            assert not {"cookie", "x-forwarded-for"} & set(asked.headers)
            assert "client" not in json.dumps(asked.headers)
        assert "authorization" not in lan.requests[0].headers
        assert "sk-or-secret" not in json.dumps([lan.requests[0].headers, lan.requests[0].json])


async def test_headers_of_clients_go_on_where_they_are_named(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    backends = pair(cloud, lan, title="Our site", forward_headers=["x-*"])
    async with start_chain(tmp_path, backends) as chain:
        await chain.chat(headers={"X-User": "me", "X-Title": "client", "X-Api-Key": "of-the-client", "Cookie": "a=b"})
        sent = cloud.requests[0].headers
        assert (sent["x-user"], sent["x-title"]) == ("me", "Our site")
        assert not {"cookie"} & set(sent) and "of-the-client" not in json.dumps(sent)


async def test_all_hops_failed_is_503_with_each_hops_reason_and_nothing_else(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    cloud.default = (402,)
    await lan.stop()
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        for _ in range(2):
            response = await chain.chat()
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            message = response.json()["error"]["message"]
            assert "cloud" in message
            assert "lan" in message
            for secret in (*SECRET_WORDS.split(), "127.0.0.1", "sk-or"):
                assert secret not in response.text + str(response.headers)
        assert "payment_required" in chain.finished[0].reason
        assert "circuit_open" in chain.finished[1].reason
        assert len(cloud.requests) == 1


async def test_retry_after_is_passed_on_when_all_backends_are_busy(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    cloud.default, lan.default = (429, "50"), (429, "20")
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        response = await chain.chat()
        assert response.status_code == 429
        assert response.headers["retry-after"] == "20"


async def test_a_dead_host_costs_later_requests_nothing_and_is_used_again_when_it_returns(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    await lan.stop()
    backends = {"lan": openai_backend(lan), "cloud": openai_backend(cloud)}
    async with start_chain(tmp_path, backends) as chain:
        await chain.chat()
        for _ in range(20):
            assert answer_text(await chain.chat()) == f"cloud:{ALL}"
        assert [len(each.attempts) for each in chain.finished[1:]] == [1] * 20
        await lan.start()
        with anyio.fail_after(20):
            while answer_text(await chain.chat()) != f"lan:{ALL}":
                pass


async def test_a_disconnected_client_does_not_count_against_the_backend(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    cloud.default = "stall_after_words"
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        for _ in range(5):
            async with chain.stream() as response:
                await anext(response.aiter_text())
        await chain.until(lambda: not cloud.open and len(chain.finished) == 5)
        assert {event.outcome for event in chain.finished} == {"client_disconnected"}
        cloud.default = "answer"
        assert answer_text(await chain.chat()) == f"cloud:{ALL}"


async def test_local_only_requests_stay_local(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        inside = {"X-Hostler-Local-Only": "true"}
        response = await chain.chat(headers=inside)
        assert answer_text(response) == f"lan:{ALL}"
        assert response.headers["x-hostler-reason"] == "cloud: non_local"
        await lan.stop()
        assert (await chain.chat(headers=inside)).status_code == 503
        assert cloud.requests == []
        assert answer_text(await chain.chat(headers={"X-Hostler-Local-Only": "false"})) == f"cloud:{ALL}"


async def test_a_local_only_request_without_a_local_backend_is_forbidden(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    async with start_chain(tmp_path, {"cloud": openai_backend(cloud, local=False)}) as chain:
        response = await chain.chat(headers={"X-Hostler-Local-Only": "true"})
        assert response.status_code == 403
        assert "must stay local" in response.json()["error"]["message"]
        assert cloud.requests == []


async def test_the_daily_limit_survives_a_restart(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    gateway = {"spending": {"daily_limit": 2 * COST, "file": str(tmp_path / "spent.json")}}
    async with start_chain(tmp_path, pair(cloud, lan), gateway=gateway) as chain:
        assert answer_text(await chain.chat()) == f"cloud:{ALL}"
        assert answer_text(await chain.chat(stream=True)) == f"cloud:{ALL}"
        response = await chain.chat()
        assert answer_text(response) == f"lan:{ALL}"
        assert response.headers["x-hostler-reason"] == "cloud: budget_exhausted"
    await lan.stop()
    async with start_chain(tmp_path, pair(cloud, lan), gateway=gateway) as chain:
        response = await chain.chat()
        assert response.status_code == 503
        assert "daily spending limit" in response.json()["error"]["message"]
        # Naming the backend does not lift the limit.
        response = await chain.chat(headers={"X-Hostler-Only": "cloud"})
        assert response.status_code == 503
        assert "daily spending limit" in response.json()["error"]["message"]
        assert len(cloud.requests) == 2


async def test_an_operator_may_name_the_backend(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    cloud.script = [(402,)]
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        assert answer_text(await chain.chat()) == f"lan:{ALL}"
        response = await chain.chat(headers={"X-Hostler-Only": "lan"})
        assert answer_text(response) == f"lan:{ALL}"
        assert (await chain.chat()).headers["x-hostler-reason"] == "cloud: circuit_open"
        # It is tried although its circuit is open, and its answer closes the circuit.
        assert answer_text(await chain.chat(headers={"X-Hostler-Only": "cloud"})) == f"cloud:{ALL}"
        assert answer_text(await chain.chat()) == f"cloud:{ALL}"
        both = {"X-Hostler-Only": "cloud", "X-Hostler-Local-Only": "true"}
        assert (await chain.chat(headers=both)).status_code in (403, 503)


async def test_a_key_may_be_local_only(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    file = tmp_path / "keys"
    inside = keys.add(file, "child", ["infer"], local_only=True)
    free = keys.add(file, "adult", ["infer", "read"])
    async with start_chain(tmp_path, pair(cloud, lan), gateway={"api_keys_file": str(file)}) as chain:
        for key, answers in ((inside, "lan"), (free, "cloud")):
            response = await chain.chat(headers={"Authorization": f"Bearer {key}"})
            assert response.headers["x-hostler-backend"] == answers
            assert key not in json.dumps([asked.headers for asked in (*cloud.requests, *lan.requests)])
        named = await chain.chat(headers={"Authorization": f"Bearer {free}", "X-Hostler-Only": "cloud"})
        assert named.status_code == 403
        assert len(cloud.requests) == 1


async def test_a_dry_run_shows_how_a_model_would_be_served_without_a_request(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    cloud.default = (402,)
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        first = (await chain.http.get("/admin/route", params={"model": "m"})).json()
        assert first["first"] == "cloud"
        assert [hop["name_there"] for hop in first["hops"]] == ["cloud/m", "lan/m"]
        assert cloud.requests == []
        await chain.chat()
        then = (await chain.http.get("/admin/route", params={"model": "m"})).json()
        assert then["first"] == "lan"
        assert then["hops"][0]["reason"] == "circuit_open"
        assert then["hops"][0]["retry_in_s"] > 6 * 3600 - 60
        inside = (await chain.http.get("/admin/route", params={"model": "m", "local_only": "true"})).json()
        assert inside["hops"][0]["reason"] == "non_local"
        assert (await chain.http.get("/admin/route", params={"model": "unknown"})).status_code == 404


async def test_the_doctor_reports_problems(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    cloud.default = (401,)
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        arguments = ["doctor", "m", "--url", str(chain.http.base_url), "--json"]
        done = await anyio.run_process([sys.executable, "-m", "hostler.gateway", *arguments], check=False)
        assert done.returncode == 1
        sick, well = json.loads(done.stdout)["hops"]
        assert (sick["backend"], sick["ok"], sick["kind"]) == ("cloud", False, "auth_failed")
        assert "backends.cloud.api_key" in sick["advice"]
        assert (well["backend"], well["ok"]) == ("lan", True)
        assert lan.requests[0].json["max_tokens"] == 1
        arguments = ["route", "m", "--dry-run", "--url", str(chain.http.base_url)]
        done = await anyio.run_process([sys.executable, "-m", "hostler.gateway", *arguments])
        assert b"is paused after failures" in done.stdout
        assert b"would answer" in done.stdout


async def test_a_dry_run_fails_where_no_backend_would_serve(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    cloud.default = (401,)
    async with start_chain(tmp_path, {"cloud": openai_backend(cloud)}) as chain:
        arguments = ["route", "m", "--dry-run", "--url", str(chain.http.base_url)]
        well = await anyio.run_process([sys.executable, "-m", "hostler.gateway", *arguments], check=False)
        assert (well.returncode, b"would answer" in well.stdout) == (0, True)
        await chain.chat()
        sick = await anyio.run_process([sys.executable, "-m", "hostler.gateway", *arguments], check=False)
        assert (sick.returncode, b"No backend would answer." in sick.stdout) == (1, True)
        shown = await anyio.run_process([sys.executable, "-m", "hostler.gateway", *arguments, "--json"], check=False)
        assert (shown.returncode, json.loads(shown.stdout)["first"]) == (1, None)


async def test_a_command_without_a_gateway_reports_it(tmp_path: Path) -> None:
    for command in (["doctor", "m"], ["route", "m", "--dry-run"]):
        arguments = [*command, "--url", "http://127.0.0.1:9"]
        done = await anyio.run_process([sys.executable, "-m", "hostler.gateway", *arguments], check=False)
        assert done.returncode == 3
        assert b"no gateway answers" in done.stderr


@pytest.mark.parametrize("kind", ["llamacpp", "ollama", "anthropic"])
async def test_backends_of_every_kind_are_hops(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter, kind: str
) -> None:
    cloud.default = (500,)
    backends = {"other": {**openai_backend(cloud), "kind": kind, "api_key": "sk-other"}, "lan": openai_backend(lan)}
    async with start_chain(tmp_path, backends) as chain:
        response = await chain.chat()
        assert answer_text(response) == f"lan:{ALL}"
        assert response.headers["x-hostler-reason"] == "other: rejected"
        sent = cloud.requests[0]
        assert sent.json["model"] == "cloud/m"
        assert sent.path.startswith("/api/")
        assert sent.headers["x-api-key" if kind == "anthropic" else "authorization"].endswith("sk-other")


@contextmanager
def unresponsive_server() -> Iterator[str]:
    """The address of a machine that takes no connection and refuses none, as one that sleeps."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # what the kernel takes by itself is full after this
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_host_that_accepts_no_connection_delays_only_the_first_request(
    tmp_path: Path, cloud: FakeOpenRouter
) -> None:
    with unresponsive_server() as url:
        backends = {"pc": {"kind": "llamacpp", "url": url, "models": {"*": "m"}}, "cloud": openai_backend(cloud)}
        timeouts = {"connect_s": 0.3, "first_byte_s": 5, "between_bytes_s": 5}
        async with start_chain(tmp_path, backends, gateway={"timeouts": timeouts}) as chain:
            assert answer_text(await chain.chat()) == f"cloud:{ALL}"
            for _ in range(30):
                await chain.chat()
            first, *others = chain.finished
            assert first.reason == "pc: connect_timeout"
            assert first.seconds >= 0.3
            assert {event.reason for event in others} == {"pc: circuit_open"}
            assert [[attempt.backend for attempt in event.attempts] for event in others] == [["cloud"]] * 30
            # Nor later: health checks spare requests the wait. Not to wait for something: some of them fail meanwhile.
            await anyio.sleep(1)
            assert (await chain.chat()).headers["x-hostler-reason"] == "pc: circuit_open"


async def test_models_of_plain_backends_have_existed_since_the_gateway_started(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    before = int(time.time())
    async with start_chain(tmp_path, pair(cloud, lan)) as chain:
        first, again = [(await chain.http.get("/v1/models")).json()["data"] for _ in range(2)]
        assert first == again
        assert all(before <= model["created"] <= time.time() for model in first)
