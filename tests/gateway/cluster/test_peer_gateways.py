"""Requests that are passed on to the gateway that has what they name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fakes.store_client import running
from starlette.requests import Request

from hostler.adapters.errors import BadRequest
from hostler.gateway.batches.http import ElsewhereUnavailable
from hostler.gateway.cluster.gateway_names import GatewayNames
from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.peer_gateways import PeerGateways

pytestmark = pytest.mark.anyio

KEPT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


@asynccontextmanager
async def gateway(answers: bytes = ANSWER) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A gateway's address, and the requests that it has got. Its connections end with an answer that says so, or is cut."""
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                got.append(head + await reader.readexactly(length))
                writer.write(answers)
                await writer.drain()
                if answers != KEPT:
                    break
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got


def request(method: str = "GET", *headers: tuple[bytes, bytes]) -> Request:
    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": "/v1/batches", "raw_path": b"/v1/batches", "query_string": b"a=%20b",
        "headers": [(b"host", b"me.lan"), *headers], "scheme": "http", "server": ("me.lan", 80), "root_path": "",
    }  # fmt: skip
    return Request(scope)


def peers(url: str | None, *, is_trusted: bool = True) -> PeerGateways:
    return some_peers({"b": Member(id="b", name="attic", version="1", url=url)}, is_trusted=is_trusted)


def some_peers(members: Mapping[str, Member], file: Path | None = None, *, is_trusted: bool = True) -> PeerGateways:
    return PeerGateways("a", lambda: members, is_trusted=is_trusted, names=GatewayNames(file))


async def forward(url: str, asked: Request, body: bytes | None) -> bytes:
    """The body of the other gateway's answer."""
    return b"".join(each.get("body", b"") for each in await messages(peers(url), asked, body))


async def messages(gateways: PeerGateways, asked: Request, body: bytes | None = None) -> list[Any]:
    """What the client gets of the other gateway's answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    response = await gateways.forward("b", asked, body)
    await response(asked.scope, receive, send)
    return sent


async def test_the_other_gateway_gets_what_the_client_has_sent_and_where_it_has_asked() -> None:
    async with gateway() as (url, got):
        key = (b"authorization", b"Bearer k")
        of_the_connection = (b"connection", b"close, X-Of-This-One"), (b"x-of-this-one", b"1")
        asked = request("GET", key, (b"x-forwarded-for", b"1.2.3.4"), *of_the_connection)
        assert await forward(url, asked, None) == b"{}"
    head, *headers = got[0].strip().split(b"\r\n")
    assert head == b"GET /v1/batches?a=%20b HTTP/1.1"
    assert sorted(headers) == [
        b"Host: " + url.removeprefix("http://").encode(),
        b"authorization: Bearer k",
        b"x-hostler-forwarded-from: http://me.lan",
    ]


async def test_a_body_that_was_read_is_not_called_compressed() -> None:
    async with gateway() as (url, got):
        await forward(url, request("POST", (b"content-encoding", b"gzip")), b'{"a": 1}')
    assert b"content-encoding" not in got[0]
    assert got[0].endswith(b'\r\n\r\n{"a": 1}')


@pytest.mark.parametrize(("url", "is_trusted", "way_out"), [(None, True, "gateway_url"), ("http://h", False, "token")])
async def test_a_key_is_sent_to_nobody_who_is_not_known(url: str | None, is_trusted: bool, way_out: str) -> None:
    with pytest.raises(ElsewhereUnavailable, match=f"ask it there, or set cluster.{way_out}"):
        await peers(url, is_trusted=is_trusted).forward("b", request(), None)


@pytest.mark.parametrize("query", [b"a=\xff", b"a=\x01", b"a" * 70_000], ids=["no text", "control", "long"])
async def test_an_address_that_cannot_be_passed_on_is_the_fault_of_its_request(query: bytes) -> None:
    asked = request()
    asked.scope["query_string"] = query
    with pytest.raises(BadRequest, match="cannot be passed on to another gateway"):
        await peers("http://127.0.0.1:1").forward("b", asked, None)


@pytest.mark.parametrize("url", ["http://a\x01b:8000", "http://ä..b:8000"])
async def test_an_address_of_a_gateway_that_is_none_is_not_the_fault_of_a_request(url: str) -> None:
    with pytest.raises(ElsewhereUnavailable, match=r"gateway attic .* correct cluster.gateway_url in its file"):
        await peers(url).forward("b", request(), None)


async def test_a_connection_is_kept_and_closed_when_its_gateway_leaves() -> None:
    async with gateway(KEPT) as (url, got):
        members = {"b": Member(id="b", name="attic", version="1", url=url)}
        peers = some_peers(members)
        async with running(peers.run):
            for _ in range(3):
                await messages(peers, request())
            (kept,) = (each.client for each in peers._connections._peers.values())
            del members["b"]
            peers.on_members()
            with anyio.fail_after(5):
                while not kept.is_closed:
                    await anyio.lowlevel.checkpoint()
    assert len(got) == 3


async def test_an_answer_that_breaks_off_at_its_beginning_is_an_error() -> None:
    async with gateway(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{") as (url, _):
        with pytest.raises(ElsewhereUnavailable, match="gateway attic has it, and does not answer") as raised:
            await peers(url).forward("b", request(), None)
        assert not raised.value.final
        with pytest.raises(ElsewhereUnavailable, match="look whether it was carried out") as raised:
            await peers(url).forward("b", request("POST"), b"{}")
        assert raised.value.final


async def test_an_answer_that_breaks_off_later_is_cut_and_logged_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    body = b"x" * 70_000
    async with gateway(b"HTTP/1.1 200 OK\r\ncontent-length: 80000\r\n\r\n" + body) as (url, _):
        sent = await messages(peers(url), request())
    assert b"".join(each.get("body", b"") for each in sent) == body
    assert sent[-1]["more_body"], "it must not look complete"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.exc_info is None
    assert "gateway attic: its answer broke off" in record.getMessage()


async def test_a_gateway_that_has_left_is_named_also_after_a_restart(tmp_path: Path) -> None:
    members = {"b": Member(id="b", name="attic", version="1")}
    async with running(some_peers(members, tmp_path / "names.json").run):
        with anyio.fail_after(5):
            while not (tmp_path / "names.json").exists():  # noqa: ASYNC110 - written in a thread
                await anyio.sleep(0.01)
    with pytest.raises(ElsewhereUnavailable, match=r"\(attic, b\) is not in the cluster now") as raised:
        await some_peers({}, tmp_path / "names.json").forward("b", request(), None)
    assert not raised.value.final and raised.value.retry_after_s
    with pytest.raises(ElsewhereUnavailable, match=r"the gateway that has it \(c\) is not in the cluster now"):
        await some_peers({}).forward("c", request(), None)


async def test_all_gateways_are_asked_at_once_and_those_without_an_answer_are_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    def read(body: bytes) -> str:
        if body != b"{}":
            raise ValueError("it is of another release")
        return body.decode()

    other = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]"
    refusal = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    async with (
        gateway() as (url, got),
        gateway(refusal) as (refusing, _),
        gateway(other) as (older, _),
        await asyncio.start_server(never, "127.0.0.1", 0) as frozen,
    ):
        addresses = {
            "a": url, "b": url, "c": f"http://127.0.0.1:{frozen.sockets[0].getsockname()[1]}", "d": refusing, "e": None,
            "f": older,
        }  # fmt: skip
        members = {name: Member(id=name, name=name, version="1", url=address) for name, address in addresses.items()}
        peers = some_peers(members)
        for _ in range(2):
            answers = await peers.ask_all(request("GET", (b"x-more", b"a client's")), ("x-more", "1"), read)
        silent.set()
    assert answers == [("b", "{}"), ("c", None), ("d", None), ("e", None), ("f", None)]
    assert len(got) == 2
    assert [line for line in got[0].split(b"\r\n") if line.startswith(b"x-more")] == [b"x-more: 1"]
    said = sorted(record.getMessage() for record in caplog.records)
    assert [each.split(" is left out of lists of files and batches: ") for each in said] == [
        ["gateway c", "no answer within 2 s"],
        ["gateway d", "it answers with HTTP status 401"],
        ["gateway e", "which this one cannot ask; ask it there, or set cluster.gateway_url in its file"],
        ["gateway f", "it is of another release"],
    ]
