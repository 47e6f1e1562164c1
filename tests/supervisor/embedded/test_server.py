"""The embedded engine as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.ports import free_port

from hostler.supervisor.embedded.server import read_until_exit

Start = Callable[..., "Engine"]


def test_an_unknown_argument_is_one_line_and_exit_code_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hostler.supervisor.embedded.server", "--nope"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "error: invalid argument: --nope\n")


class Engine:
    """The real engine as a child, with pipes."""

    def __init__(self, model: Path, *arguments: str, **variables: str) -> None:
        self.port = free_port()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "hostler.supervisor.embedded.server", "-m", str(model), "--port", str(self.port), "-c", "512",
             "-b", "128", "-np", "1", "-t", "1", "--cache-ram", "0", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "LLAMA_API_KEY": "k3y", "LLAMA_SERVER_ROUTER_PORT": "1", **variables},
        )  # fmt: skip

    def until(self, state: str) -> dict[str, Any]:
        """Read its standard output until it reports `state`."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith("cmd_child_to_router:state:"):
                news: dict[str, Any] = json.loads(line.partition("state:")[2])
                if news["state"] == state:
                    return news
        raise AssertionError(f"it ended without being {state}")

    def until_held(self) -> None:
        """Read its log until it holds."""
        assert self.child.stderr is not None
        assert any(line.startswith("holding") for line in self.child.stderr)

    def tell(self, command: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{command}\n")

    def ask(self, path: str, body: object = None, *, key: str = "k3y", origin: str = "") -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Origin": origin},
        )
        return urllib.request.urlopen(request, timeout=30)


@pytest.fixture
def engine(real_model: Path) -> Iterator[Start]:
    pytest.importorskip("xllamacpp")
    started: list[Engine] = []

    def start(*arguments: str, model: Path | None = None, **variables: str) -> Engine:
        started.append(Engine(model or real_model, *arguments, **variables))
        return started[-1]

    yield start
    for one in started:
        one.child.kill()
        one.child.communicate()


@pytest.mark.engine
def test_reports_ready_and_requires_its_key(engine: Start) -> None:
    one = engine("--alias", "little", "--metrics")
    ready = one.until("ready")
    assert ready["payload"]["meta"]["n_ctx"] == 512
    with one.ask("/v1/models", origin="http://evil.example") as answer:
        assert json.load(answer)["data"][0]["id"] == "little"
        assert not answer.headers.get("Access-Control-Allow-Origin")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        one.ask("/v1/models", key="another")
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    with one.ask("/v1/chat/completions", body) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4


@pytest.mark.engine
def test_holds_before_it_loads(engine: Start, tmp_path: Path, real_model: Path) -> None:
    link = tmp_path / "later.gguf"
    one = engine(model=link, HOSTLER_ENGINE_HOLDS="1")
    one.until_held()
    link.symlink_to(real_model)  # had it tried to load before, it would have failed
    one.tell("hostler:load")
    assert one.until("ready")["payload"]["meta"]["n_ctx"] == 512


@pytest.mark.engine
@pytest.mark.parametrize(("command", "code"), [("cmd_router_to_child:exit", 0), ("nonsense", 1), (None, 1)])
def test_ends_while_it_holds(engine: Start, command: str | None, code: int) -> None:
    one = engine(HOSTLER_ENGINE_HOLDS="1")
    one.until_held()
    if command is not None:
        one.tell(command)
    else:
        assert one.child.stdin is not None
        one.child.stdin.close()
        one.child.stdin = None
    assert one.child.wait(20) == code


@pytest.mark.engine
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("how", ["signal", "command", "end of stdin"])
def test_exits_at_once_on_request(engine: Start, how: str, busy: bool) -> None:
    one = engine()
    one.until("ready")
    assert one.child.stdin is not None
    body = {
        "messages": [{"role": "user", "content": "Tell a story."}],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
    }
    with one.ask("/v1/chat/completions", body) if busy else contextlib.nullcontext() as answer:
        if busy:
            assert answer.readline().startswith(b"data: ")
        if how == "signal":
            one.child.send_signal(signal.SIGTERM)
        elif how == "command":
            one.child.stdin.write("cmd_router_to_child:exit\n")
        else:
            one.child.stdin.close()
            one.child.stdin = None
        # It reports ready a moment before it handles signals.
        allowed = {"signal": (0, -signal.SIGTERM), "command": (0,), "end of stdin": (1,)}[how]
        # Its own shutdown would wait half a minute for the response in progress.
        assert one.child.wait(20) in allowed


@pytest.mark.engine
def test_a_signal_ends_a_load_too(engine: Start) -> None:
    one = engine()
    one.until("loading")
    one.child.send_signal(signal.SIGTERM)
    assert one.child.wait(20) == -signal.SIGTERM


@pytest.mark.engine
def test_an_invalid_model_ends_it_with_a_line_that_says_so(engine: Start, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("hello, this is no model")
    one = engine(model=file)
    _, errors = one.child.communicate(timeout=30)
    assert one.child.returncode == 1
    assert "invalid magic characters" in errors


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"hello\ncmd_router_to_child:exit\n", True),
        (b"cmd_router_to_child:exit\r\n", True),
        (b"cmd_router_to_child:ex", False),
        (b"", False),
    ],
)
def test_where_pipes_cannot_be_waited_for_commands_are_read(sent: bytes, told: bool) -> None:
    reading, writing = os.pipe()
    os.write(writing, sent)
    if not told:
        os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as commands:
        assert read_until_exit(commands) is told
    if told:
        os.close(writing)
