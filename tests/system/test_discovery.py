"""Servers are asked what they have: their models appear in every protocol, and requests reach them under these names."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes import model_lists
from fakes.ports import free_port
from fakes.scripted_server import CERTIFICATE, ScriptedServer, start_scripted_server, tls_for_tests
from system.fallback_chain import RunningChain, answer_text, start_chain

pytestmark = pytest.mark.anyio

#: Kind, path of the URL, what the server answers, the model, its context, and whether it has tools and vision.
SHAPES: dict[str, tuple[str, str, dict[str, Any], str, int, tuple[bool, bool]]] = {
    "ollama": ("ollama", "", model_lists.OLLAMA, "qwen3:8b", 8192, (True, True)),
    "lmstudio": ("lmstudio", "", model_lists.LM_STUDIO, "gemma-3-270m-it-qat", 4096, (True, True)),
    "llama-server": ("llamacpp", "", model_lists.LLAMA_SERVER, "Llama-3.1-8B-Q4_K_M", 16384, (True, True)),
    "vllm": ("openai", "/v1", model_lists.VLLM, "Qwen/Qwen3-8B-AWQ", 40960, (False, False)),
    "openrouter": ("openai", "/api/v1", model_lists.OPENROUTER, "openai/gpt-5", 400_000, (True, True)),
    "anthropic": ("anthropic", "", model_lists.ANTHROPIC, "claude-sonnet-5", 1_000_000, (True, True)),
    "gemini": ("openai", "/v1beta/openai", model_lists.GEMINI, "gemini-3-flash", 0, (False, False)),
    "z.ai": ("openai", "/api/paas/v4", model_lists.ZAI, "glm-5", 0, (False, False)),
    "azure": ("openai", "/openai/v1?api-version=preview", model_lists.AZURE, "gpt-5", 0, (False, False)),
    "rootless": ("openai", "", model_lists.ROOTLESS, "plain", 0, (False, False)),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


def backend_of(server: ScriptedServer, shape: str) -> dict[str, Any]:
    """A backend in the configuration, with nothing but its kind and address."""
    kind, path, documents, *_ = SHAPES[shape]
    server.documents = documents
    if kind == "openai":
        server.base = next(iter(documents)).removesuffix("/models")
        server.base = {"/v1": "", "": "/"}.get(server.base, server.base)
    return {"kind": kind, "url": server.url + path}


async def lists(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    """What the five protocols say of a model."""
    openai = {entry["id"]: entry for entry in (await http.get("/v1/models")).json()["data"]}
    anthropic = (await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()["data"]
    lmstudio = {entry["key"]: entry for entry in (await http.get("/api/v1/models")).json()["models"]}
    return {
        "openai": openai[model],
        "anthropic": {entry["id"]: entry for entry in anthropic}[model],
        "ollama": (await http.post("/api/show", json={"model": model})).json(),
        "tags": [entry["name"] for entry in (await http.get("/api/tags")).json()["models"]],
        "lmstudio": lmstudio[model],
        "llamacpp": (await http.get("/props", params={"model": model})).json(),
    }


@each_shape
async def test_models_appear_in_every_protocol_with_what_is_known_of_them(tmp_path: Path, shape: str) -> None:
    _, _, _, model, context, (tools, vision) = SHAPES[shape]
    async with start_scripted_server() as server, start_chain(tmp_path, {"box": backend_of(server, shape)}) as chain:
        said = await lists(chain.http, model)
    assert said["openai"].get("context_length", 0) == context
    assert said["anthropic"].get("max_input_tokens", 0) == context
    assert said["lmstudio"].get("max_context_length", 0) == context
    assert said["llamacpp"]["default_generation_settings"]["n_ctx"] == context
    contexts = [value for key, value in said["ollama"]["model_info"].items() if key.endswith(".context_length")]
    assert contexts == ([context] if context else [])
    assert said["lmstudio"]["capabilities"] == {"vision": vision, "trained_for_tool_use": tools}
    assert {"completion", *(["tools"] if tools else []), *(["vision"] if vision else [])} <= set(
        said["ollama"]["capabilities"]
    )
    assert said["llamacpp"]["modalities"]["vision"] is vision


@each_shape
async def test_a_request_under_the_servers_own_name_reaches_it(tmp_path: Path, shape: str) -> None:
    model = SHAPES[shape][3]
    async with start_scripted_server() as server, start_chain(tmp_path, {"box": backend_of(server, shape)}) as chain:
        answer = await chain.chat(model=model)
        assert answer_text(answer) == "The capital <is> Zürich 🏔"
        ((_, body),) = server.requests
    assert body["model"] == model
    if shape == "azure":
        assert server.heads[-1][1] == "/openai/v1/chat/completions?api-version=preview"


async def test_quantization_thinking_and_kind_are_shown(tmp_path: Path) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"box": backend_of(server, "ollama")}) as chain:
        said = await lists(chain.http, "qwen3:8b")
        data = {entry["id"]: entry for entry in (await chain.http.get("/v1/models")).json()["data"]}
    assert (said["openai"]["quantization"], said["openai"]["type"]) == ("Q4_K_M", "chat")
    assert data["nomic-embed-text:latest"]["type"] == "embedding"
    assert said["ollama"]["thinking"] == {"values": [True, False], "default": True}
    assert said["ollama"]["runner"] == "llamacpp"
    assert said["ollama"]["details"]["quantization_level"] == said["lmstudio"]["quantization"]["name"] == "Q4_K_M"
    assert said["anthropic"]["capabilities"]["thinking"]["supported"] is True
    assert said["tags"] == ["qwen3:8b", "nomic-embed-text:latest"]


async def test_a_model_that_is_new_at_the_server_can_be_used_at_once(tmp_path: Path) -> None:
    async with start_scripted_server() as server:
        server.documents = {"/v1/models": {"data": [{"id": "old"}]}}
        async with start_chain(tmp_path, {"box": {"kind": "openai", "url": server.url}}) as chain:
            assert (await chain.http.get("/v1/models/new")).status_code == 404
            server.documents = {"/v1/models": {"data": [{"id": "new"}]}}
            asked = len(server.heads)
            with anyio.fail_after(20):
                # The list is not asked for again within seconds, however often names are unknown.
                while (answer := await chain.chat(model="new")).status_code == 404:  # noqa: ASYNC110
                    await anyio.sleep(0.2)
            assert answer_text(answer)
            assert (await chain.http.get("/v1/models")).json()["data"][0]["id"] == "new"
            found = [headers for method, _, headers in server.heads[asked:] if method == "GET"]
            assert len([headers for headers in found if "user-agent" not in headers]) == 1, "others are health checks"


async def test_backends_are_shown_with_what_each_has(tmp_path: Path) -> None:
    async with start_scripted_server() as ollama, start_scripted_server() as rootless:
        backends = {
            "box": backend_of(ollama, "ollama"),
            "plain": backend_of(rootless, "rootless"),
            "gone": {"kind": "openai", "url": f"http://127.0.0.1:{free_port()}/v1", "models": {"m": "m"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            shown = {each["backend"]: each for each in (await chain.http.get("/admin/backends")).json()["backends"]}
    box, plain, gone = (shown[name] for name in backends)
    assert [(model["name"], model["kind"], model["context"]) for model in box["models"]] == [
        ("nomic-embed-text:latest", "embedding", 2048),
        ("qwen3:8b", "chat", 8192),
    ]
    assert (plain["prefix"], plain["problem"], plain["url"]) == ("", None, rootless.url)
    assert "refused the connection" in gone["problem"]
    assert [model["name"] for model in gone["models"]] == ["m"]


async def test_filters_and_wildcards_choose_the_models(tmp_path: Path) -> None:
    async with start_scripted_server() as ollama, start_scripted_server() as router:
        backends = {
            "box": {**backend_of(ollama, "ollama"), "models": {"include": ["qwen*"], "fast": "qwen3:8b"}},
            "router": {**backend_of(router, "openrouter"), "models": {"openrouter/*": "*"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            names = [entry["id"] for entry in (await chain.http.get("/v1/models")).json()["data"]]
            await chain.chat(model="openrouter/openai/gpt-5")
            await chain.chat(model="openrouter/not/listed")
            await chain.chat(model="fast")
    assert sorted(names) == ["fast", "openrouter/openai/gpt-5", "qwen3:8b"]
    assert [body["model"] for _, body in router.requests] == ["openai/gpt-5", "not/listed"]
    assert [body["model"] for _, body in ollama.requests] == ["qwen3:8b"]


# The connection


async def test_headers_and_query_go_with_every_request(tmp_path: Path) -> None:
    async with start_scripted_server() as server:
        server.documents = model_lists.VLLM
        backend = {
            "kind": "openai",
            "url": f"{server.url}/v1?from=url",
            "api_key": "sk-unused",
            "headers": {"X-Team": "home", "Authorization": "Token mine", "User-Agent": "we"},
            "query": {"api-version": "2026-01-01"},
        }
        async with start_chain(tmp_path, {"box": backend}) as chain:
            await chain.chat(model="Qwen/Qwen3-8B-AWQ")
    assert {target.partition("?")[2] for _, target, _ in server.heads} == {"from=url&api-version=2026-01-01"}
    for _, _, headers in server.heads:
        assert (headers["x-team"], headers["authorization"], headers["user-agent"]) == ("home", "Token mine", "we")


@pytest.mark.parametrize("transport", ["direct", "remote"])
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "certificate"),
        ({"ca_file": str(CERTIFICATE)}, None),
        ({"insecure": True}, None),
        ({"ca_file": "/no/such.pem"}, "ca_file names /no/such.pem, but there is no such file"),
    ],
)
async def test_certificates_are_verified_as_configured(
    tmp_path: Path, transport: str, settings: dict[str, Any], problem: str | None
) -> None:
    async with start_scripted_server(tls=tls_for_tests()) as server:
        server.documents = model_lists.VLLM
        backend = {"kind": "openai", "url": server.url, "local": transport == "direct", **settings}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            (shown,) = (await chain.http.get("/admin/backends")).json()["backends"]
    if problem is None:
        assert [model["name"] for model in shown["models"]] == ["Qwen/Qwen3-8B-AWQ"]
    else:
        assert problem in shown["problem"]


@pytest.mark.parametrize("transport", ["direct", "remote"])
async def test_a_client_certificate_is_shown_to_servers_that_want_one(tmp_path: Path, transport: str) -> None:
    async with start_scripted_server(tls=tls_for_tests(client_certificates=True)) as server:
        server.documents = model_lists.VLLM
        backend = {
            "kind": "openai",
            "url": server.url,
            "local": transport == "direct",
            "ca_file": str(CERTIFICATE),
            "client_cert_file": str(CERTIFICATE),
        }
        async with start_chain(tmp_path, {"box": backend}) as chain:
            assert (await chain.chat(model="Qwen/Qwen3-8B-AWQ")).status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "ALL_PROXY names a SOCKS proxy"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:1", "HTTPS_PROXY does not name a proxy"),
        ("SSL_CERT_FILE", "/no/such.pem", "SSL_CERT_FILE names /no/such.pem"),
        ("NO_PROXY", "10.0.0.0/8,127.0.0.0/8", "refused the connection|cannot be reached"),
    ],
)
async def test_the_environment_can_only_make_the_backend_unreachable_that_it_concerns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    for variable in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv(name, value)
    cloud = {"kind": "openai", "url": f"https://127.0.0.1:{free_port()}/v1", "local": False, "models": {"far": "far"}}
    async with (
        start_scripted_server() as server,
        start_chain(tmp_path, {"box": backend_of(server, "vllm"), "cloud": cloud}) as chain,
    ):
        shown = {each["backend"]: each for each in (await chain.http.get("/admin/backends")).json()["backends"]}
        near, far = await chain.chat(model="Qwen/Qwen3-8B-AWQ"), await chain.chat(model="far")
    assert near.status_code == 200
    assert far.status_code >= 500
    assert any(words in shown["cloud"]["problem"] for words in reason.split("|")), shown["cloud"]["problem"]


async def test_a_backend_can_ignore_the_environments_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with start_scripted_server() as server:
        backends = {
            "ignores": {**backend_of(server, "vllm"), "local": False, "proxy": "none"},
            "heeds": {**backend_of(server, "vllm"), "local": False, "models": {"heeding": "m"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            assert (await chain.chat(model="Qwen/Qwen3-8B-AWQ")).status_code == 200
            assert (await chain.chat(model="heeding")).status_code >= 500


# Sleeping machines


async def test_a_plain_server_on_a_sleeping_machine_is_woken_by_the_first_request(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.bind(("127.0.0.1", 0))
        packets.setblocking(False)
        wake = {"mac": "01:23:45:67:89:ab", "broadcast": f"127.0.0.1:{packets.getsockname()[1]}", "wait_s": 30}
        backend = {"kind": "openai", "url": f"http://127.0.0.1:{port}", "models": {"m": "there"}, "wake": wake}
        answers: list[httpx.Response] = []

        async def ask(chain: RunningChain) -> None:
            answers.append(await chain.chat(model="m"))

        async with start_chain(tmp_path, {"box": backend}) as chain, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, chain)
            with anyio.fail_after(20):
                await anyio.wait_readable(packets)
            assert packets.recv(200).startswith(b"\xff" * 6)
            async with start_scripted_server(port):
                with anyio.fail_after(20):
                    while not answers:  # noqa: ASYNC110
                        await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert answer_text(answers[0])
