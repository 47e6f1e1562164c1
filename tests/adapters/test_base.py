"""The defaults that adapters, encoders and upstreams inherit."""

from __future__ import annotations

import pytest

from hostler.adapters.base import (
    Adapter,
    Encoder,
    Incoming,
    Operation,
    Parser,
    Timing,
    Upstream,
    WireRequest,
    WireResponse,
    raise_after,
)
from hostler.adapters.canonical import Chunk, ModelInfoRequest, Passthrough, Progress, Request, ResponseHead
from hostler.adapters.errors import BackendBroken, BackendRejected, GatewayError, NotFound
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.profiles.presets import Preset

OPERATION = Operation(name="ask", path="/ask")


class PlainEncoder(Encoder):
    def encode(self, chunk: Chunk) -> bytes:
        return chunk.text.encode()


class PlainAdapter(Adapter):
    name = "plain"
    operations = (OPERATION,)

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        return Passthrough(origin=self.origin(operation, incoming))

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        return PlainEncoder()

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        return WireResponse(status=error.status)


class PlainUpstream(Upstream):
    wire = "plain"

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        return WireRequest(path="/")

    def parser(self, request: Request, *, fields: bool) -> Parser:
        raise NotImplementedError


@pytest.fixture
def adapter() -> PlainAdapter:
    return PlainAdapter()


@pytest.fixture
def request_(adapter: PlainAdapter) -> Request:
    headers = {"content-type": "text/plain"}
    return adapter.decode(OPERATION, Incoming(method="POST", path="/ask", body=b"x", query="a=1", headers=headers))


def test_the_origin_is_what_the_client_sent(request_: Request) -> None:
    origin = request_.origin
    assert (origin.wire, origin.operation, origin.body, origin.method) == ("plain", "ask", b"x", "POST")
    assert (origin.path, origin.query, origin.content_type) == ("/ask", "a=1", "text/plain")


def test_by_default_a_request_stays_as_it_is(adapter: PlainAdapter, request_: Request) -> None:
    assert adapter.expand(request_) is request_
    assert adapter.apply_preset(request_, Preset(model="base")) is request_
    assert adapter.validate(request_, ModelCard(name="m")) is request_


def test_by_default_a_rejection_stands(adapter: PlainAdapter, request_: Request) -> None:
    rejected = BackendRejected("no", backend="b", wire="x", backend_status=400, headers={}, body=b"")
    assert adapter.amend(request_, rejected) is None


def test_by_default_there_is_no_model_info(adapter: PlainAdapter, request_: Request) -> None:
    info = ModelInfoRequest(origin=request_.origin, kind="models")
    with pytest.raises(NotFound, match="'models'"):
        adapter.model_info(info, ModelList())
    assert not adapter.is_subscription(info)
    assert adapter.change_events(None, ModelList()) == b""


def test_by_default_no_web_page_is_allowed(adapter: PlainAdapter) -> None:
    assert not adapter.allows_origin("http://localhost")


def test_by_default_an_encoder_has_no_stream_and_no_heartbeats() -> None:
    encoder = PlainEncoder()
    encoder.set_clock(lambda: 0.0)
    encoder.bind_model(ModelCard(name="m"))
    encoder.start(ResponseHead())
    encoder.set_timing(Timing())
    assert (encoder.streaming, encoder.media_type, encoder.length) == (False, "application/json", None)
    assert encoder.heartbeat(Progress(phase="loading", model="m")) == encoder.error(GatewayError("x")) == b""
    assert encoder.encode(Chunk(text="a")) + encoder.finish() == b"a"


def test_an_upstream_speaks_its_own_protocol() -> None:
    assert PlainUpstream().speaks("plain")
    assert not PlainUpstream().speaks("openai")


def test_an_adapter_without_its_methods_cannot_be_created() -> None:
    class Incomplete(Adapter):
        name = "incomplete"
        operations = ()

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()


def test_an_error_is_raised_after_the_chunks_before_it() -> None:
    chunks = raise_after([Chunk(text="a")], BackendBroken("x"))
    assert next(chunks).text == "a"
    with pytest.raises(BackendBroken):
        next(chunks)
