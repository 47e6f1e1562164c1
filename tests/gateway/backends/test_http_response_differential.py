"""The same bytes through our parser and through h11: the same bodies, and the same refusals where both are strict.

Where we differ, we refuse more. Each reason is named in `STRICTER`; any other difference fails.
"""

from __future__ import annotations

import itertools
import re

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hostler.gateway.backends.http_response import MAX_HEAD, MalformedResponse, ResponseReader, ResponseTemplate

Outcome = tuple[int, bytes] | None  # status and body, or refused

# What h11 takes in a head and we do not: what another reader could understand in another way, or what no backend sends.
STRICTER = {
    "a line that ends without CR": rb"(?<!\r)\n",
    "a folded header": rb"\n[ \t]",
    "a length given twice": rb"(?is)content-length:([^\r\n]*,|.*content-length:)",
    "a length beside chunks": rb"(?is)(content-length:.*transfer-encoding:|transfer-encoding:.*content-length:)",
    "a length beyond 64 bits": rb"(?i)content-length:[ \t]*\d{20}",
    "another version": rb"HTTP/(?!1\.[01] )",
    "a status that means nothing": rb"HTTP/1\.\d (?![1-5])",
    "chunks in HTTP/1.0": rb"(?is)HTTP/1\.0.*transfer-encoding:",
    "a control character in a value": rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]",
}
# The same of a chunked body.
STRICTER_CHUNKS = {
    "an extension that is no token": rb"(?m)^[0-9a-fA-F]+[^\r\n]*;",
    "spaces after a size": rb"(?m)^[0-9a-fA-F]+[ \t]+\r?$",
    "a trailer that is no header": rb"(?:^|\n)0+\r\n(?!\r\n|X-Trailer: y\r\n\r\n)",
}
# What h11 refuses and we take, since it cannot change where an answer ends.
LOOSER = {
    "empty lines after an interim answer": rb"\r\n\r\n[\r\n]+HTTP/",
    "a control character in the words after the status": rb"(?m)^HTTP/1\.\d \d\d\d [^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
}


def ours(pieces: list[bytes], method: str) -> Outcome:
    reader = ResponseReader(method)
    body = b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += b"".join(reader.parts)
            reader.parts.clear()
        reader.eof()
    except MalformedResponse:
        return None
    assert reader.head is not None
    return reader.head.status, body


def theirs(pieces: list[bytes], method: str) -> Outcome:
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        for piece in [*pieces, b""]:
            client.receive_data(piece)
            while True:
                event = client.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    return status, body
                elif isinstance(event, h11.ConnectionClosed):
                    return None
    except h11.RemoteProtocolError:
        return None
    return None


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(raw) + 1) for place in at} | {0, len(raw)})
    return [raw[start:end] for start, end in itertools.pairwise(places) if start < end]


def excused(raw: bytes, in_head: dict[str, bytes], in_chunks: dict[str, bytes] | None = None) -> bool:
    """Whether something in the heads (interim ones too) is a known difference, or something in the chunks."""
    found, interim = raw.find(b"\r\n\r\n"), re.match(rb"(?s)(HTTP/1\.\d 1\d\d.*?\r\n\r\n[\r\n]*)+", raw)
    if interim:
        found = raw.find(b"\r\n\r\n", interim.end())
    head, body = (raw[: found + 4], raw[found + 4 :]) if found >= 0 else (raw, b"")
    if any(re.search(pattern, head) for pattern in in_head.values()):
        return True
    chunks = body if b"chunked" in head.lower() else b""
    return any(re.search(pattern, chunks) for pattern in (in_chunks or {}).values())


header = st.sampled_from(
    [
        *(b"Server: x", b"Content-Type: text/event-stream", b"X-A:b", b"X-Empty:", b"x: \t y \t", b"Connection: close"),
        *(b"Connection: keep-alive", b"Keep-Alive: timeout=5, max=100", b"Set-Cookie: a=b", b"Date: now"),
    ]
)
odd_header = st.sampled_from(
    [
        *(
            b"Content-Length: 4",
            b"Content-Length: 0",
            b"content-length: 5",
            b"Content-Length: 4, 4",
            b"Content-Length: -1",
        ),
        *(
            b"Content-Length: +4",
            b"Content-Length: 0x4",
            b"Content-Length: ",
            b"Content-Length: 4 4",
            b"Content-Length: 99999999999999999999",
        ),
        *(
            b"Transfer-Encoding: chunked",
            b"transfer-encoding: Chunked",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: gzip, chunked",
        ),
        *(
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding : chunked",
            b" folded: x",
            b"no colon",
        ),
        *(b": no name", b"bad name: x", b"nul: a\0b", b"cr: a\rb", b"tab:\tx", b"high: \xff", b"Upgrade: h2c"),
    ]
)
start = st.sampled_from(
    [
        *(
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 404 Not Found",
            b"HTTP/1.1 204 No Content",
            b"HTTP/1.1 304 Not Modified",
        ),
        *(b"HTTP/1.0 200 OK", b"HTTP/1.1 302 Found", b"HTTP/1.1 500 ", b"HTTP/1.1 200"),
    ]
)
odd_start = st.sampled_from(
    [
        *(
            b"HTTP/2.0 200 OK",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"http/1.1 200 OK",
            b"HTTP/1.1  200 OK",
            b"200 OK",
            b"ICE/1.0 200 OK",
        ),
        *(
            b"HTTP/1.1 101 Switching",
            b"HTTP/1.1 199 Odd",
            b"HTTP/1.1 099 Odd",
            b"HTTP/1.1 999 Odd",
            b"HTTP/1.2 200 OK",
            b"\r\nHTTP/1.1 200 OK",
        ),
    ]
)
ending = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r", b"\n\r"])
text = st.binary(max_size=40)


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    raw = b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=30), max_size=6)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"%x", b"%x;a=b", b"%x"])) % len(data)
        raw += size + b"\r\n" + data + b"\r\n"
    return raw + b"0\r\n" + draw(st.sampled_from([b"", b"", b"X-Trailer: y\r\n"])) + b"\r\n"


@st.composite
def sound(draw: st.DrawFn) -> bytes:
    """An answer as it should be, perhaps after interim ones, perhaps with another after it."""
    lines = [draw(start), *draw(st.lists(header, max_size=4))]
    if draw(st.booleans()):
        lines.append(b"Transfer-Encoding: chunked")
        body = draw(chunked())
    else:
        body = draw(text)
        if draw(st.booleans()):
            lines.append(b"Content-Length: %d" % len(body))
    interim = draw(
        st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
    )
    after = draw(st.sampled_from([b"", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]))
    return interim + b"\r\n".join(lines) + b"\r\n\r\n" + body + after


@st.composite
def unsound(draw: st.DrawFn) -> bytes:
    """Parts of answers, put together without care."""
    lines = [draw(st.one_of(start, odd_start)), *draw(st.lists(st.one_of(header, odd_header), max_size=5))]
    body = draw(st.one_of(text, chunked(), st.just(b"4\r\nbody\r\n0\r\n\r\n"), st.just(b"4 \r\nbody\r\n0\r\n\r\n")))
    return b"".join(line + draw(ending) for line in lines) + draw(ending) + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound answer with some bytes changed, lost, doubled, or the end cut off."""
    raw = bytearray(draw(sound()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        match draw(st.sampled_from(["change", "lose", "double", "cut"])):
            case "change":
                raw[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "lose":
                del raw[at : at + draw(st.integers(1, 4))]
            case "double":
                raw[at:at] = raw[at : at + draw(st.integers(1, 8))]
            case _:
                del raw[at:]
    return bytes(raw)


places = st.lists(st.integers(0, 1 << 16), max_size=12)
methods = st.sampled_from(["POST", "GET", "HEAD"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(raw=sound(), at=places, method=methods)
def test_sound_answers_are_read_alike(raw: bytes, at: list[int], method: str) -> None:
    pieces = cut(raw, at)
    mine = ours(pieces, method)
    if mine is None and excused(raw, STRICTER, STRICTER_CHUNKS):
        return
    assert mine == theirs(pieces, method)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(raw=st.one_of(unsound(), damaged()), at=places, method=methods)
@example(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody", at=[], method="GET")
@example(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbody\r\n0\r\n\r\n", at=[], method="GET")
def test_unsound_answers_are_refused_alike(raw: bytes, at: list[int], method: str) -> None:
    pieces = cut(raw, at)
    mine, other = ours(pieces, method), theirs(pieces, method)
    if mine is None and excused(raw, STRICTER, STRICTER_CHUNKS):
        return
    if other is None and excused(raw, LOOSER):
        return
    assert mine == other


@settings(max_examples=300, deadline=None, derandomize=True)
@given(raw=st.one_of(sound(), unsound(), damaged()), at=places, method=methods)
def test_how_the_bytes_were_cut_makes_no_difference(raw: bytes, at: list[int], method: str) -> None:
    assert ours(cut(raw, at), method) == ours([raw] if raw else [], method)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(raw=sound(), method=methods)
def test_a_connection_is_kept_only_if_h11_would_keep_it(raw: bytes, method: str) -> None:
    reader = ResponseReader(method)
    try:
        reader.feed(raw)
    except MalformedResponse:
        return
    if not reader.keep_s:
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    while not isinstance(client.next_event(), h11.EndOfMessage):
        pass
    assert client.their_state is h11.DONE and client.trailing_data[0] == b""


def test_both_refuse_a_head_without_end() -> None:
    pieces = [b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * 1000] * 200]
    assert ours(pieces, "GET") is None and theirs(pieces, "GET") is None


def parsed(raw: bytes, method: str, seen: ResponseTemplate | None) -> tuple[object, ...] | None:
    """Everything that one segment tells of an answer."""
    reader = ResponseReader(method, seen)
    try:
        reader.feed(raw)
        headers = reader.headers() if reader.head is not None else None
        return reader.head, b"".join(reader.parts), reader.complete, reader.keep_s, reader.until_close, headers
    except MalformedResponse:
        return None


ALIKE = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: %d\r\nX-A: b\r\n\r\n"


@st.composite
def alike(draw: st.DrawFn) -> bytes:
    """Answers that differ in their bodies, their lengths, and sometimes in something else."""
    body = draw(text)
    length = draw(st.sampled_from([b"%d" % len(body)] * 6 + [b"0%d" % len(body), b"%d " % len(body), b"1", b"+1", b""]))
    raw = (
        ALIKE.replace(b"%d", length) + body + draw(st.sampled_from([b""] * 6 + [b"x", b"\r\n", b"HTTP/1.1 200 OK\r\n"]))
    )
    at = draw(st.integers(0, 3 * len(raw)))
    return raw[:at] + draw(st.binary(max_size=2)) + raw[at + 1 :] if at < len(raw) else raw


@settings(max_examples=300, deadline=None, derandomize=True)
@given(answers=st.lists(st.tuples(st.one_of(alike(), alike(), sound()), methods), min_size=2, max_size=8))
def test_an_answer_that_begins_like_one_before_it_is_read_as_if_it_came_alone(answers: list[tuple[bytes, str]]) -> None:
    seen = ResponseTemplate()
    for raw, method in answers:
        if raw:
            assert parsed(raw, method, seen) == parsed(raw, method, None)


def test_an_answer_that_begins_like_one_before_it_is_not_parsed_again() -> None:
    seen = ResponseTemplate()
    for body in (b"one", b"three", b"", b"one"):
        parsed(ALIKE % len(body) + body, "POST", seen)
        assert seen.body("POST", ALIKE % 5 + b"seven") == b"seven"
    assert seen.body("GET", ALIKE % 5 + b"seven") is None
