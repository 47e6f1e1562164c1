"""Mistakes on the command line: one line that says what to do, the right exit code, and no traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from fakes.ports import free_port

from hostler.gateway.cli import start_options
from hostler.gateway.cli.main import app

ROOT = Path(__file__).parent.parent.parent


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`hostler ARGUMENTS` in this folder, with no other configuration."""
    own = {name: str(folder / name.lower()) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOSTLER_CACHE")}
    return subprocess.run(
        [sys.executable, "-m", "hostler.gateway", *arguments],
        cwd=folder,
        env={**os.environ, **own, "HOSTLER_API_KEY": "", "HOSTLER_CONFIG": "", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def file(folder: Path, document: dict[str, Any] | str | bytes, name: str = "hostler.yaml") -> Path:
    path = folder / name
    if isinstance(document, bytes):
        path.write_bytes(document)
    else:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def assert_helpful(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("hostler: ")
    assert "Errno" not in line
    for word in words:
        assert word in line
    assert "Traceback" not in done.stdout + done.stderr


@contextmanager
def listener(*, backlog: int = 1) -> Iterator[int]:
    """A port in use."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(backlog)
        yield sock.getsockname()[1]


Prepare = Callable[[Path], list[str]]

WRONG: dict[str, tuple[Prepare, int, tuple[str, ...]]] = {
    "no file": (lambda _: ["up", "--config", "nope.yaml"], 2, ("nope.yaml", "no such file")),
    "a folder": (lambda at: ["up", "--config", str(at)], 2, ("that is a folder",)),
    "no file to check": (lambda _: ["check", "nope.yaml"], 2, ("nope.yaml: no such file",)),
    "a folder to check": (lambda at: ["check", str(at)], 2, ("is a folder",)),
    "an empty path": (lambda _: ["up", ""], 2, ("'': an empty name",)),
    "an empty engine": (lambda _: ["engine", "use", ""], 2, ("name an engine", "hostler engine list")),
    "an unknown home": (lambda _: ["engine", "use", "~nobody-of-this-name/x"], 2, ("there is no such engine or program",)),
    "an unknown home of keys": (lambda _: ["ps", "--key-file", "~nobody-of-this-name/k"], 2, ("cannot be read",)),
    "an unknown home of archives": (lambda _: ["engine", "update", "~nobody-of-this-name/k"], 2, ("no such file",)),
    "bad YAML": (lambda at: ["up", "-c", str(file(at, "gateway:\n  listen: [1\n"))], 2, ("hostler.yaml:3: not valid YAML",)),
    "bad YAML for ps": (lambda at: ["ps", "-c", str(file(at, "gateway: ["))], 2, ("hostler.yaml:1", "not valid YAML")),
    "no text": (lambda at: ["check", str(file(at, b"\xff\xfe"))], 2, ("not UTF-8",)),
    "a misspelt key": (lambda at: ["check", str(file(at, "gatewy: {}"))], 2, ("did you mean gateway?",)),
    "no address": (
        lambda at: ["up", "-c", str(file(at, {"gateway": {"listen": ["127.0.0.1:80000"]}}))],
        2, ("gateway.listen[0]", "write host:port"),
    ),
    "no keys": (
        lambda at: ["up", "-c", str(file(at, {"gateway": {"listen": ["0.0.0.0:0"]}}))],
        2, ("without API keys", "hostler keys add NAME"),
    ),
    "no token": (
        lambda at: ["supervisor", "-c", str(file(at, {"supervisor": {"listen": "0.0.0.0:0"}}))],
        2, ("without a token", "supervisor.token"),
    ),
    "no backends": (lambda at: ["gateway", "-c", str(file(at, "{}"))], 2, ("no backends", "hostler up")),
    "an unknown model to pull": (lambda _: ["pull", "smollm"], 2, ("did you mean smollm2?",)),
    "an unknown option of the log": (
        lambda at: ["check", str(file(at, {"gateway": {"logging": {"format": "xml"}}}))], 2, ("gateway.logging.format",),
    ),
    "no key of that name": (lambda _: ["keys", "revoke", "me"], 1, ("no key named 'me'",)),
    "no file for a profile": (lambda _: ["profiles", "add", "nope.gguf"], 1, ("nope.gguf: no such file",)),
    "no gateway": (lambda at: ["ps", "--url", f"127.0.0.1:{free_port()}"], 3, ("no gateway answers", "hostler up")),
    "no address of a gateway": (lambda _: ["ps", "--url", "http://127.0.0.1:x"], 3, ("is not a valid URL", "http://127.0.0.1:8000")),
    "no host of a gateway": (lambda _: ["ps", "--url", "http://nowhere.invalid"], 3, ("unknown host name",)),
    "no key file": (lambda _: ["ps", "--key-file", "nope"], 2, ("--key-file nope", "cannot be read")),
    "an empty key file": (lambda at: ["ps", "--key-file", str(file(at, "\n", "key"))], 2, ("holds no key",)),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_is_one_line_with_a_remedy(tmp_path: Path, wrong: str) -> None:
    prepare, code, words = WRONG[wrong]
    assert_helpful(run(tmp_path, *prepare(tmp_path)), code, *words)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with listener() as port:
        path = file(tmp_path, {"gateway": {"listen": [f"127.0.0.1:{port}"]}})
        done = run(tmp_path, "up", "--config", str(path))
    assert_helpful(done, 2, f"127.0.0.1:{port}", "another program is using it", "gateway.listen")


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    run(tmp_path, "keys", "add", "me")
    path = file(tmp_path, {"gateway": {"listen": ["192.0.2.7:0"]}})
    assert_helpful(run(tmp_path, "up", "--config", str(path)), 2, "cannot listen on 192.0.2.7", "gateway.listen")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    nowhere = str(file(tmp_path, "a file", "plain") / "below")
    path = file(tmp_path, {"gateway": {"listen": ["127.0.0.1:0"]}, "profiles": {"a": {"model": "/no.gguf"}}})
    up = run(tmp_path, "up", "--config", str(path), HOSTLER_CACHE=nowhere)
    assert_helpful(up, 2, nowhere, "HOSTLER_CACHE")
    assert_helpful(run(tmp_path, "keys", "add", "me", XDG_CONFIG_HOME=nowhere), 1, nowhere)
    path.unlink()
    assert_helpful(run(tmp_path, "pull", HOSTLER_CACHE=nowhere), 1, "could not write", nowhere)


def test_a_pull_without_a_network_reports_it(tmp_path: Path) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    done = run(tmp_path, "pull", "smollm2", HTTPS_PROXY=proxy, https_proxy=proxy, PIP_INDEX_URL="https://index.invalid")
    assert_helpful(done, 1, "is unreachable", "check the network", "set model: to a path")


def test_another_server_is_reported_as_no_gateway(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split()[5]
        for command in (["ps"], ["switch", "a"], ["events"]):
            assert_helpful(run(tmp_path, *command, "--url", f"127.0.0.1:{port}"), 3, "is not a Hostler gateway")
    finally:
        server.kill()
        server.communicate()


def test_a_malformed_key_is_reported(tmp_path: Path) -> None:
    assert_helpful(run(tmp_path, "ps", HOSTLER_API_KEY="two\nlines"), 2, "HOSTLER_API_KEY holds no key")


def test_a_pipe_that_closes_early_leaves_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hostler.gateway schema | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)  # noqa: S602
    assert done.stderr == ""


def test_an_unexpected_error_is_one_line_too(tmp_path: Path) -> None:
    code = (
        "from hostler.gateway.cli import views\n"
        "views.models = lambda *given: 1 // 0\n"
        "import sys; sys.argv = ['hostler', 'models']\n"
        "from hostler.gateway.__main__ import main\n"
        "main()"
    )
    environ = {**os.environ, "HOSTLER_CONFIG": "", "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert_helpful(done, 1, "ZeroDivisionError", "HOSTLER_TRACEBACK")


def test_exit_codes_are_documented() -> None:
    codes = {"0", *(str(value) for name, value in vars(start_options).items() if name.isupper() and type(value) is int)}
    assert codes == {"0", "1", "2", "3", "4", "130"}
    group = typer.main.get_command(app)
    for text in (group.epilog or "", *(read(name) for name in ("configuration.md", "operations.md"))):
        assert all(f"{code} " in text for code in codes), text


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command", [("models",), ("models", "--json"), ("status",), ("route", "a", "--dry-run"), ("doctor",)], ids=" ".join
)
@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://[nonsense"])
def test_a_named_gateway_that_does_not_answer_is_an_error(tmp_path: Path, command: tuple[str, ...], url: str) -> None:
    address = url.replace("{port}", str(free_port()))
    done = run(tmp_path, *command, "--config", str(without_gateway(tmp_path)), "--url", address)
    assert done.stdout == ""
    assert_helpful(done, 3, address)


def test_models_are_listed_without_a_gateway_if_none_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "models", "--config", str(without_gateway(tmp_path)))
    assert done.returncode == 0
    assert "a" in done.stdout


def without_gateway(folder: Path) -> Path:
    return file(folder, {"gateway": {"listen": [f"127.0.0.1:{free_port()}"]}, "profiles": {"a": {"model": "/no.gguf"}}})
