"""The admin client: how a gateway is found and called, and errors that say what to do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes.ports import free_port

from hostler.gateway.cli.client import AdminClient, CallFailed, NotListening, connect, read_key, unknown_model
from hostler.gateway.config import read

GATEWAY = {"version": "1", "hosts": [], "models": [{"name": "alpha", "aliases": ["first"]}], "in_flight": []}
SUPERVISOR = {"profiles": [{"name": "alpha", "aliases": []}], "models": [], "exclusive": True}

Reply = tuple[int, dict[str, str], bytes]


class FakeServer:
    """Answers each path as scripted, and remembers the requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    def reply(self, path: str, body: object, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.replies[path] = status, {name.replace("_", "-"): value for name, value in headers.items()}, content


@pytest.fixture
def server() -> Iterator[FakeServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            fake.requests.append((self.path, headers, body))
            status, more, content = fake.replies.get(self.path.partition("?")[0], (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        fake = FakeServer(f"http://127.0.0.1:{listening.server_port}")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        listening.shutdown()
        thread.join()


def failure(call: Callable[[], object]) -> CallFailed:
    with pytest.raises(CallFailed) as raised:
        call()
    assert "\n" not in str(raised.value)
    return raised.value


def test_the_key_and_the_body_are_sent(server: FakeServer) -> None:
    server.reply("/admin/pin", {"pinned": True})
    assert AdminClient(server.url, "hst-key").post("/admin/pin", model="alpha", pinned=True) == {"pinned": True}
    ((_, headers, body),) = server.requests
    assert headers["authorization"] == "Bearer hst-key"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("hostler/")
    assert json.loads(body) == {"model": "alpha", "pinned": True}


def test_proxies_of_the_environment_are_not_used(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    server.reply("/healthz", {"status": "ok"})
    assert AdminClient(server.url).get("/healthz") == {"status": "ok"}


def test_a_unix_socket_is_called_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                heads.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

        heads: list[bytes] = []
        thread = threading.Thread(target=answer)
        thread.start()
        assert AdminClient(f"unix:{path}").get("/healthz") == {}
        thread.join()
    assert b"Host: localhost\r\n" in heads[0]


def test_a_redirect_is_not_followed(server: FakeServer) -> None:
    server.reply("/admin/status", b"", 302, Location=f"{server.url}/elsewhere")
    error = failure(lambda: AdminClient(server.url, "hst-key").get("/admin/status"))
    assert "status 302" in str(error)
    assert [path for path, _, _ in server.requests] == ["/admin/status"]


def test_events_are_read_until_the_stream_ends(server: FakeServer) -> None:
    stream = b': hello\n\nevent: a\ndata: {"n": 1}\n\ndata: [2]\n\nevent: half\ndata: {}'
    server.reply("/events", stream)
    assert list(AdminClient(server.url).events("/events")) == [("a", {"n": 1}), ("", [2])]


def test_lines_are_read_until_the_text_ends(server: FakeServer) -> None:
    server.reply("/logs/alpha", "one\r\nzwölf\n\nthree".encode())
    assert list(AdminClient(server.url).lines("/logs/alpha", {"follow": "1"})) == ["one", "zwölf", "", "three"]
    assert server.requests[0][0] == "/logs/alpha?follow=1"


def test_an_error_status_is_an_answer_where_the_caller_wants_it(server: FakeServer) -> None:
    server.reply("/v1/chat/completions", {"error": {"message": "busy"}}, 503, X_Hostler_Backend="box")
    answer = AdminClient(server.url).send("/v1/chat/completions", {}, {"X-Hostler-Only": "box"}, 5.0)
    assert (answer.status, answer.headers["x-hostler-backend"]) == (503, "box")
    assert answer.body == {"error": {"message": "busy"}}
    assert server.requests[0][1]["x-hostler-only"] == "box"


@pytest.mark.parametrize(
    ("reply", "key", "exit_code", "words"),
    [
        ((401, {}, b""), None, 4, ("requires an API key", "HOSTLER_API_KEY", "--key-file", "hostler keys add")),
        ((401, {}, b""), "k", 4, ("does not know this key", "hostler keys add")),
        (
            (401, {"WWW-Authenticate": 'Bearer realm="hostler-supervisor"'}, b""),
            None,
            4,
            ("the supervisor", "its token"),
        ),
        ((403, {}, b'{"error": {"message": "needs the scope \'read\'"}}'), "k", 4, ("lacks the scope read", "--scope")),
        ((403, {}, b'{"error": "not from there"}'), "k", 4, ("not from there",)),
        ((404, {}, b""), None, 3, ("is not a Hostler gateway",)),
        ((404, {}, b'{"error": {"message": "no x", "code": "model_not_found"}}'), None, 2, ("no x",)),
        ((500, {}, b"<html>"), None, 1, ("status 500", "is it a Hostler gateway?")),
        ((503, {}, b'{"error": {"message": "all is busy"}}'), None, 1, ("all is busy",)),
        ((200, {}, b"[1]"), None, 3, ("is not a Hostler gateway",)),
        ((200, {}, b"<html>"), None, 3, ("does not answer like a Hostler gateway",)),
    ],
    ids=lambda each: str(each[0]) if isinstance(each, tuple) else None,
)
def test_an_unusable_answer_says_what_to_do(
    server: FakeServer, reply: Reply, key: str | None, exit_code: int, words: tuple[str, ...]
) -> None:
    server.replies["/admin/status"] = reply
    error = failure(lambda: AdminClient(server.url, key).get("/admin/status"))
    assert error.exit_code == exit_code
    assert error.status == reply[0] or reply[0] == 200
    assert all(word in str(error) for word in words)


@contextmanager
def sockets_that(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of a server that does this with its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def work() -> None:
            connection, _ = listening.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=work)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_a_port_without_a_listener() -> None:
    error = failure(lambda: AdminClient(f"http://127.0.0.1:{free_port()}").get("/healthz"))
    assert isinstance(error, NotListening)
    assert (error.exit_code, "hostler up" in str(error)) == (3, True)


def test_a_host_name_that_does_not_exist() -> None:
    error = failure(lambda: AdminClient("http://nowhere.invalid").get("/healthz"))
    assert (error.exit_code, "unknown host name" in str(error)) == (3, True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:x", "http://[nonsense", "ftp://127.0.0.1", "http://127.0.0.1:99999"])
def test_an_address_that_is_none(url: str) -> None:
    error = failure(lambda: AdminClient(url).get("/healthz"))
    assert (error.exit_code, "http://127.0.0.1:8000" in str(error)) == (3, True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer like a Hostler gateway"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "closed the connection without an answer"),
        (b"", "closed the connection without an answer"),
    ],
)
def test_a_server_of_another_protocol(answer: bytes, words: str) -> None:
    def work(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with sockets_that(work) as url:
        error = failure(lambda: AdminClient(url).get("/healthz"))
    assert (error.exit_code, words in str(error)) == (3, True)


def test_a_server_that_does_not_answer() -> None:
    done = threading.Event()
    with sockets_that(lambda connection: done.wait(20)) as url:
        error = failure(lambda: AdminClient(url).post("/admin/load", 0.1, model="a"))
        done.set()
    assert (error.exit_code, "does not answer" in str(error)) == (3, True)


# How a target is found.


def configured(folder: Path, gateway: str, supervisor: str) -> Any:
    path = folder / "hostler.yaml"
    listen = {"gateway": {"listen": [gateway]}, "supervisor": {"listen": supervisor}}
    path.write_text(json.dumps(listen))
    return read(path, environ={})


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOSTLER_API_KEY", raising=False)


def test_the_gateway_of_the_configuration_is_found(server: FakeServer, tmp_path: Path) -> None:
    server.reply("/admin/status", GATEWAY)
    configuration = configured(tmp_path, server.url.removeprefix("http://"), "127.0.0.1:1")
    target = connect(configuration)
    assert (target.kind, target.status) == ("gateway", GATEWAY)
    assert target.model_name("FIRST") == "alpha"
    with pytest.raises(CallFailed, match="did you mean alpha") as raised:
        target.model_name("alhpa")
    assert raised.value.exit_code == 2


def test_the_supervisor_of_the_configuration_stands_in(server: FakeServer, tmp_path: Path) -> None:
    server.reply("/models/status", SUPERVISOR)
    configuration = configured(tmp_path, f"127.0.0.1:{free_port()}", server.url.removeprefix("http://"))
    target = connect(configuration)
    assert (target.kind, target.own_status) == ("supervisor", SUPERVISOR)
    assert [card["state"] for card in target.status["models"]] == ["unloaded"]
    with pytest.raises(CallFailed, match=r"is a supervisor, and only gateways route requests"):
        target.require_gateway("only gateways route requests")
    with pytest.raises(NotListening):
        connect(configuration, f"http://127.0.0.1:{free_port()}")


def test_a_key_without_the_scope_read_is_enough_where_no_status_is_required(server: FakeServer, tmp_path: Path) -> None:
    server.reply("/admin/status", {"error": {"message": "needs the scope 'read'"}}, 403)
    configuration = configured(tmp_path, server.url.removeprefix("http://"), "127.0.0.1:1")
    assert connect(configuration, status_required=False).model_name("anything") == "anything"
    assert failure(lambda: connect(configuration)).exit_code == 4


def test_a_key_comes_from_the_file_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_API_KEY", " from-environment\n")
    assert read_key(None) == "from-environment"
    (tmp_path / "key").write_text("from-file\n")
    assert read_key(str(tmp_path / "key")) == "from-file"
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "lines").write_text("one\ntwo")
    for name in ("missing", "bytes", "lines"):
        with pytest.raises(CallFailed, match="--key-file") as raised:
            read_key(str(tmp_path / name))
        assert raised.value.exit_code == 2


def test_an_unknown_model_is_answered_with_the_nearest_and_the_first_names() -> None:
    text = unknown_model("m29x", [f"m{number}" for number in range(30)])
    assert "did you mean m29?" in text
    assert text.endswith("m18, m19 and 10 more, see `hostler models`")
