"""Random requests and answers: an adapter or parser raises a `GatewayError` for what it cannot use, and nothing else.

Fuzzers of model files, configuration files and event streams stand beside what they test: `profiles/test_gguf_header.py`,
`profiles/test_yaml_config.py`, `adapters/test_sse.py`. A failure prints the seed: `--hypothesis-seed=N` repeats it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from system.hostler_process import run_hostler

from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Adapter, Incoming, Operation, Upstream
from hostler.adapters.canonical import ModelInfoRequest, Request, ResponseHead
from hostler.adapters.errors import BackendBroken, BackendRejected, GatewayError
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.model_list import ModelCard
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.registry import load_adapters

ADAPTERS = {adapter.name: adapter for adapter in load_adapters()}
UPSTREAMS: dict[str, Upstream] = {
    "openai": OpenAIUpstream(),
    "llamacpp": LlamaCppUpstream(),
    "ollama": OllamaUpstream(),
    "anthropic": AnthropicUpstream(),
}
POSTS = [
    (adapter, operation)
    for adapter in ADAPTERS.values()
    for operation in adapter.operations
    if "POST" in operation.methods and not operation.upload
]

#: Field names of all protocols, so that random values reach the code behind them.
NAMES = [
    *(
        "model",
        "messages",
        "role",
        "content",
        "stream",
        "prompt",
        "input",
        "system",
        "instructions",
        "tools",
        "tool_calls",
    ),
    *("function", "name", "arguments", "parameters", "id", "index", "type", "text", "options", "num_predict", "stop"),
    *("max_tokens", "temperature", "top_p", "seed", "format", "response_format", "json_schema", "schema", "thinking"),
    *(
        "reasoning",
        "reasoning_content",
        "reasoning_effort",
        "image_url",
        "images",
        "source",
        "data",
        "suffix",
        "context",
    ),
    *("keep_alive", "logprobs", "top_logprobs", "n", "raw", "template", "think", "tool_choice", "documents", "query"),
    *("choices", "delta", "message", "finish_reason", "usage", "prompt_tokens", "completion_tokens", "cost", "timings"),
    *("error", "code", "done", "done_reason", "response", "embedding", "embeddings", "content_block", "stop_reason"),
    *(
        "prompt_eval_count",
        "eval_count",
        "output",
        "item",
        "metadata",
        "previous_response_id",
        "input_tokens",
        "budget_tokens",
    ),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63, 10**400, 1e308, 0.5]),
    st.text(max_size=8),
    st.sampled_from(["user", "assistant", "system", "tool", "text", "function", "m", "", "5m", "json", "\ud800", "\0"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)),
    max_leaves=20,
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)

MESSAGES = [{"role": "user", "content": "hi"}]
BASES: list[dict[str, Any]] = [
    {"model": "m", "messages": MESSAGES, "max_tokens": 5},
    {"model": "m", "prompt": "x"},
    {"model": "m", "input": "x"},
    {"model": "m", "query": "x", "documents": ["y"]},
    {},
]
CARD = ModelCard(name="m", state="loaded", context=4096, capabilities=("completion", "tools", "vision", "insert"))


def incoming(operation: Operation, body: bytes) -> Incoming:
    path = operation.path.replace("{name:path}", "m").replace("{id}", "m")
    parameters = {name: "m" for name in ("name", "id", "model", "path", "digest", "response_id") if f"{{{name}" in path}
    return Incoming(
        method="POST", path=path, body=body, path_params=parameters, headers={"content-type": "application/json"}
    )


def read(adapter: Adapter, operation: Operation, body: bytes) -> Request | None:
    """The request; `None` if it is refused in an orderly way."""
    try:
        request = adapter.decode(operation, incoming(operation, body))
        if isinstance(request, ModelInfoRequest):
            return None
        return adapter.validate(request, CARD)
    except GatewayError as error:
        assert error.status < 500, (operation.name, body[:500], error)
        response = adapter.error_response(error, operation)
        assert 400 <= response.status < 600
        return None


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@settings(max_examples=60)
@given(data=st.data())
def test_any_body_becomes_a_request_or_a_refusal(name: str, data: st.DataObject) -> None:
    adapter, operation = data.draw(st.sampled_from([each for each in POSTS if each[0].name == name]))
    body = {**data.draw(st.sampled_from(BASES)), **data.draw(objects)}
    request = read(adapter, operation, json.dumps(body).encode("utf-8", "replace"))
    if request is None:
        return
    for upstream in UPSTREAMS.values():
        sent = built(adapter, upstream, request)
        assert sent is None or b"\n" not in sent.split(b" ", 1)[0]


def built(adapter: Adapter, upstream: Upstream, request: Request) -> bytes | None:
    try:
        expanded = request if upstream.speaks(request.origin.wire) else adapter.expand(request)
        wire = upstream.build(expanded, model="there", stream=False)
    except GatewayError as error:
        assert error.status < 500, error
        return None
    return wire.path.encode() + b" " + wire.body


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@given(body=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_a_request_or_a_refusal(name: str, body: bytes) -> None:
    for adapter, operation in POSTS:
        if adapter.name == name:
            read(adapter, operation, body)


@settings(max_examples=60)
@pytest.mark.parametrize("kind", sorted(UPSTREAMS))
@given(data=st.data())
def test_any_answer_is_passed_on_or_broken(kind: str, data: st.DataObject) -> None:
    """Every client's encoder gets what the parser makes of a random answer."""
    upstream = UPSTREAMS[kind]
    events = data.draw(st.lists(objects, max_size=4))
    stream, whole = data.draw(st.booleans()), data.draw(st.booleans())
    encoded = [json.dumps(event).encode("utf-8", "replace") for event in events]
    if whole:
        answer, head = b"".join(encoded[:1]), ResponseHead(media_type="application/json")
    elif kind == "ollama":
        answer, head = b"\n".join(encoded) + b"\n", ResponseHead(media_type="application/x-ndjson")
    else:
        answer = b"".join(b"event: message\ndata: " + each + b"\n\n" for each in encoded) + b"data: [DONE]\n\n"
        head = ResponseHead(media_type="text/event-stream")
    cut = data.draw(st.integers(0, len(answer)))
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
        ("/api/chat", {"messages": MESSAGES}),
    ):
        adapter, operation = next((a, o) for a, o in POSTS if o.path == path and o.header is None)
        request = read(adapter, operation, json.dumps({"model": "m", "stream": stream, **body}).encode())
        assert request is not None
        same = upstream.speaks(request.origin.wire)
        request = request if same else adapter.expand(request)
        encoder = adapter.encoder(request, response_id="r", created=0, progress="off")
        encoder.bind_model(CARD)
        parser = upstream.parser(request, fields=not same)
        try:
            parser.start(head)
            encoder.start(head)
            for piece in (answer[:cut], answer[cut:]):
                for chunk in parser.feed(piece):
                    encoder.encode(chunk)
            for chunk in parser.finish():
                encoder.encode(chunk)
            encoder.finish()
        except GatewayError as error:
            adapter.error_response(error, operation)
            encoder.error(error)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@given(
    status=st.integers(300, 599),
    body=st.one_of(objects.map(json.dumps), st.text(max_size=40)),
    wire=st.sampled_from(sorted(UPSTREAMS)),
)
def test_any_error_of_a_backend_can_be_told_to_any_client(name: str, status: int, body: str, wire: str) -> None:
    rejected = BackendRejected(
        "b answered with an error",
        backend="b",
        wire=wire,
        backend_status=status,
        headers={},
        body=body.encode("utf-8", "replace"),
    )
    for adapter, operation in POSTS:
        if adapter.name == name:
            for error in (rejected, BackendBroken(body)):
                assert 300 <= adapter.error_response(error, operation).status < 600


# HTTP

REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\nConnection: keep-alive\r\n\r\n{}"
)
PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"Host: a\r\n", b"Content-Length: 3\r\n", b"\xff", b"\r\n\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"HTTP/2.0"),
    *(
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\n",
        b"Connection: close\r\n",
        b"CONNECT",
        b"GET",
        b"%2e%2e/",
        b"?x=",
    ),
]


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, int]]:
    (folder / "hostler.yaml").write_text(
        json.dumps(
            {
                "gateway": {"listen": ["127.0.0.1:0"]},
                "backends": {"one": {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"m": "m"}}},
            }
        )
    )
    apart = {name: str(folder) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    with run_hostler(
        "gateway", "--config", str(folder / "hostler.yaml"), errors=folder / "log", environ=apart
    ) as hostler:
        url = urlsplit(hostler.address)
        assert url.hostname is not None
        assert url.port is not None
        yield url.hostname, url.port
        assert "Traceback" not in hostler.log


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with gateway(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(REQUEST)), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4),
    cut=st.integers(0, len(REQUEST)),
)
def test_any_bytes_get_an_answer_or_an_end(
    address: tuple[str, int], edits: list[tuple[int, int, bytes]], cut: int
) -> None:
    data = REQUEST
    for at, removed, piece in edits:
        data = data[:at] + piece + data[at + removed :]
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(data[:cut])
        connection.sendall(data[cut:])
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
    statuses = [line.split(b" ")[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert all(status[:1] in b"1234" or status in (b"501", b"502", b"503") for status in statuses), received
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
