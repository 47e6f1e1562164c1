"""The commands that call a running gateway or supervisor, here with scripted engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from fakes.ports import free_port
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE
from typer.testing import CliRunner, Result

from hostler.gateway.auth import keys
from hostler.gateway.cli.main import app

FAILED, USAGE, UNREACHABLE, UNAUTHORIZED = 1, 2, 3, 4


class Product:
    """A running gateway or supervisor, its configuration file, and a key for each scope."""

    def __init__(self, running: HostlerProcess, file: Path, made: dict[str, str]) -> None:
        self.running = running
        self.file = file
        self.keys = made

    def run(self, *arguments: str, key: str | None = "all", **environ: str) -> Result:
        """`hostler ARGUMENTS` with its configuration file, and with the key of that name."""
        shown = {} if key is None or not self.keys else {"HOSTLER_API_KEY": self.keys[key]}
        environ = {"HOSTLER_API_KEY": "", **shown, **environ}
        return CliRunner().invoke(app, [*arguments, "--config", str(self.file)], env=environ)

    def json(self, *arguments: str) -> Any:
        """The output with `--json`."""
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def lines(self, *arguments: str) -> list[Any]:
        """The same for commands that print one object per line."""
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    def chat(self, model: str, **more: Any) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.keys['all']}"}
        request = urllib.request.Request(
            f"{self.running.address}/v1/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


def written(folder: Path, **gateway: Any) -> Path:
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    scripts: dict[str, dict[str, Any]] = {
        "alpha": {"stderr": "alpha wrote this"},
        "beta": {},
        "broken": {"exit_code": 1, "stderr": "out of luck"},
        "ringing": {"exit_code": 1, "stderr": "\x1b[31mout of luck\x07"},
        "slow": {"last_when": str(folder / "slow-may-end")},
    }
    profiles: dict[str, Any] = {
        name: {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(script)}} for name, script in scripts.items()
    }
    profiles["alpha"]["aliases"] = ["first"]
    document = {
        "gateway": {"listen": [f"127.0.0.1:{free_port()}"], **gateway},
        "supervisor": {
            "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
            "stop_grace_s": 1.0,
            "backoff_s": 0.05,
            "listen": f"127.0.0.1:{free_port()}",
        },
        "profiles": profiles,
    }
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    return path


def environ_in(folder: Path) -> dict[str, str]:
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOSTLER_CACHE")
    return {name: str(folder / name.lower()) for name in names}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`hostler up` with keys."""
    folder = tmp_path_factory.mktemp("up")
    key_file = folder / "keys"
    made = {
        "all": keys.add(key_file, "all", ("infer", "read", "operate")),
        "infer": keys.add(key_file, "infer", ("infer",)),
        "read": keys.add(key_file, "read", ("read",)),
        "operate": keys.add(key_file, "operate", ("operate",)),
    }
    file = written(folder, api_keys_file=str(key_file))
    with run_hostler("up", "--config", str(file), errors=folder / "log", environ=environ_in(folder)) as running:
        yield Product(running, file, made)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`hostler supervisor`, found by its configuration file."""
    folder = tmp_path_factory.mktemp("supervisor")
    file = written(folder)
    with run_hostler("supervisor", "--config", str(file), errors=folder / "log", environ=environ_in(folder)) as running:
        yield Product(running, file, {})


@pytest.fixture
def slow(product: Product) -> Iterator[str]:
    """The ID of a request that lasts until it is cancelled or the test ends."""
    body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {product.keys['all']}"}
    gate = product.file.with_name("slow-may-end")
    gate.unlink(missing_ok=True)
    request = urllib.request.Request(
        f"{product.running.address}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if b"word0" in line:
                break
        yield answer.headers["X-Request-ID"]
        gate.touch()


def test_switch_shows_each_step_and_the_outcome(product: Product) -> None:
    product.run("unload", "alpha", "--now")
    done = product.run("switch", "first")
    assert done.exit_code == 0
    assert "alpha: starting" in done.stderr
    assert done.stdout.startswith("alpha is ready")
    steps = product.lines("switch", "beta")
    phases = [step["data"]["phase"] for step in steps if step["event"] == "phase"]
    assert phases.index("stopping") < phases.index("starting")
    assert (steps[-1]["event"], steps[-1]["data"]["model"]) == ("ready", "beta")
    assert product.run("switch", "beta").stdout == "beta is ready.\n"


def test_load_prints_only_the_outcome(product: Product) -> None:
    done = product.run("load", "alpha")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("alpha is ready")
    assert product.json("load", "alpha")["state"] == "loaded"


def test_a_model_that_does_not_load_is_explained(product: Product) -> None:
    for command in ("switch", "load"):
        done = product.run(command, "broken")
        assert done.exit_code == FAILED
        assert "out of luck" in done.stderr
        assert "hostler: " in done.stderr
    failed = product.run("switch", "broken", "--json")
    assert failed.exit_code == FAILED
    assert json.loads(failed.stdout.splitlines()[-1])["event"] == "failed"
    product.run("unload", "broken")


def test_unload_stops_a_model(product: Product) -> None:
    product.run("load", "alpha")
    assert product.run("unload", "first").stdout == "alpha is unloaded.\n"
    assert product.json("unload", "alpha") == {"model": "alpha", "state": "unloaded"}


def test_unload_waits_for_answers_unless_now_is_given(product: Product, slow: str) -> None:
    done = product.run("unload", "slow")
    assert "as soon as its answers in progress have ended" in done.stdout
    assert [each["id"] for each in product.json("ps")["requests"]] == [slow]
    assert "is unloaded" in product.run("unload", "slow", "--now").stdout


def test_a_model_is_pinned_until_it_is_unpinned(product: Product) -> None:
    product.run("load", "alpha")
    assert product.run("pin", "first").stdout == "alpha is pinned on local: once loaded, it stays.\n"
    assert "pinned" in next(line for line in product.run("ps").stdout.splitlines() if line.startswith("alpha"))
    output = {"model": "alpha", "pinned": False, "backends": ["local"], "remembered": True}
    assert product.json("unpin", "alpha", "--host", "local") == output
    assert product.run("unpin", "alpha").stdout == "alpha is no longer pinned on local.\n"
    assert not next(each for each in product.json("ps")["models"] if each["model"] == "alpha")["pinned"]


def test_the_error_for_an_unknown_host_names_the_hosts_of_the_model(product: Product) -> None:
    done = product.run("pin", "alpha", "--host", "tower")
    assert (done.exit_code, "hosts that have it: local" in done.stderr) == (USAGE, True)


def test_ps_shows_models_and_requests(product: Product, slow: str) -> None:
    done = product.run("ps")
    assert done.exit_code == 0
    header, running, _, asked, request = done.stdout.splitlines()
    assert header.split() == ["MODEL", "HOST", "STATE", "SINCE", "MEMORY", "BUSY", "UNLOADS"]
    assert running.split()[:3] == ["slow", "local", "ready"]
    assert "1/1" in running
    assert asked.split()[0] == "REQUEST"
    assert request.split()[:5] == [slow, "all", "slow", "local", "generating"]
    output = product.json("ps")
    assert output["models"][0]["model"] == "slow"
    assert output["requests"][0]["phase"] == "generating"


def test_cancel_ends_a_request(product: Product, slow: str) -> None:
    assert product.run("cancel", slow).stdout == f"{slow} is cancelled.\n"
    again = product.run("cancel", "no-such-request")
    assert again.exit_code == FAILED
    assert "hostler ps" in again.stderr


def test_status_shows_hosts_and_models(product: Product) -> None:
    product.run("load", "beta")
    shown = product.run("status").stdout
    assert shown.startswith(f"hostler 0.1.0 at {product.running.address}\nactive model: beta; 0 requests in progress\n")
    assert "local  reachable" in shown
    assert "beta *" in shown
    assert product.json("status")["active"] == "beta"


def test_models_are_listed_with_their_state(product: Product) -> None:
    product.run("load", "beta")
    rows = {row["name"]: row for row in product.json("models")}
    assert rows["beta"]["state"] == "loaded"
    assert rows["alpha"]["aliases"] == ["first"]
    assert "beta" in product.run("models").stdout


def test_events_show_past_requests_and_the_current_state(product: Product) -> None:
    product.chat("beta")
    header, *_, last, now = product.run("events").stdout.splitlines()
    assert header.split()[:3] == ["AT", "REQUEST", "MODEL"]
    assert last.split()[1:4] == ["ok", "beta", "local"]
    assert "models" in now
    (snapshot,) = product.lines("events")
    assert snapshot["event"] == "snapshot"
    assert snapshot["data"]["version"]


def test_logs_are_the_gateways_or_an_engines(product: Product) -> None:
    product.run("load", "beta")
    product.run("load", "alpha")
    own = product.run("logs")
    assert own.exit_code == 0
    assert "alpha: ready after" in own.stdout
    assert "alpha wrote this" in product.run("logs", "first").stdout
    assert any(line["text"] == "alpha wrote this" for line in product.lines("logs", "alpha", "--host", "local"))
    elsewhere = product.run("logs", "alpha", "--host", "moon")
    assert elsewhere.exit_code == USAGE
    assert "local" in elsewhere.stderr


def test_route_and_doctor(product: Product) -> None:
    dry = product.run("route", "first", "--dry-run")
    assert dry.exit_code == 0
    assert "would answer" in dry.stdout
    assert product.json("route", "alpha")["answer"]["status"] == 200
    failed = product.run("route", "broken")
    assert (failed.exit_code, "could not be loaded" in failed.stderr) == (FAILED, True)
    assert product.run("route", "broken", "--json").exit_code == FAILED
    assert "ok" in product.run("doctor", "beta").stdout
    assert product.json("doctor", "beta")["hops"][0]["ok"] is True


@contextmanager
def following(product: Product, *arguments: str) -> Iterator[IO[str]]:
    """The output of a command that follows something, as it arrives."""
    environ = {**os.environ, "HOSTLER_API_KEY": product.keys.get("all", "")}
    command = [sys.executable, "-m", "hostler.gateway", *arguments, "--config", str(product.file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
        assert process.returncode == 130
        assert complaint == ""


def test_events_are_followed_until_interrupted(product: Product) -> None:
    product.run("load", "alpha")
    with following(product, "events", "-f", "--json") as output:
        assert json.loads(output.readline())["event"] == "snapshot"
        product.chat("beta")
        kinds = set()
        while "request" not in kinds:
            kinds.add(json.loads(output.readline())["event"])
        assert {"switch", "engine"} <= kinds
    with following(product, "events", "-f") as output:
        assert "models" in output.readline()
        product.chat("alpha")
        while "openai.chat alpha" not in (line := output.readline()):
            assert line


def test_logs_are_followed_until_interrupted(product: Product) -> None:
    product.run("load", "beta")
    with following(product, "logs", "-f", "alpha") as output:
        while "alpha wrote this" not in output.readline():
            pass
        product.run("unload", "alpha", "--now")
        product.run("load", "alpha")
        while "alpha wrote this" not in output.readline():
            pass
    with following(product, "logs", "--follow", "--json") as output:
        product.chat("beta")
        while "openai.chat beta" not in (line := json.loads(output.readline()))["text"]:
            pass
        assert line["logger"] == "hostler.requests"


@pytest.mark.parametrize("what", [("logs", "-f", "alpha"), ("events", "-f")], ids=" ".join)
def test_a_supervisors_logs_and_events_are_followed(alone: Product, what: tuple[str, ...]) -> None:
    alone.run("load", "alpha")
    with following(alone, *what) as output:
        assert output.readline()


CALLING: list[tuple[str, ...]] = [
    ("ps",), ("status",), ("models",), ("events",), ("logs",), ("logs", "alpha"), ("switch", "alpha"),
    ("load", "alpha"), ("unload", "alpha"), ("pin", "alpha"), ("unpin", "alpha"), ("cancel", "x"), ("route", "alpha", "--dry-run"), ("doctor",),
]  # fmt: skip
each_command = pytest.mark.parametrize("command", CALLING, ids=" ".join)


@each_command
def test_a_command_without_a_key_explains_how_to_pass_one(product: Product, command: tuple[str, ...]) -> None:
    if command == ("models",):
        done = product.run(*command, key=None)
        assert (done.exit_code, "HOSTLER_API_KEY" in done.stderr) == (0, True)
        return
    done = product.run(*command, key=None)
    assert done.exit_code == UNAUTHORIZED
    assert "HOSTLER_API_KEY" in done.stderr
    assert "--key-file" in done.stderr


@each_command
def test_a_wrong_key_is_reported_as_unknown(product: Product, command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hst-not-this-one\n")
    done = product.run(*command, "--key-file", str(file), key="all")
    assert done.exit_code == UNAUTHORIZED
    assert "does not know this key" in done.stderr


@each_command
def test_a_key_without_the_scope_is_reported_with_the_scope(product: Product, command: tuple[str, ...]) -> None:
    orders = command[0] in ("switch", "load", "unload", "pin", "unpin", "cancel")
    done = product.run(*command, key="read" if orders else "infer")
    if command == ("models",):
        assert done.exit_code == 0
        return
    assert done.exit_code == UNAUTHORIZED
    assert ("lacks the scope " + ("operate" if orders else "read")) in done.stderr


def test_a_key_with_the_scope_operate_alone_is_enough_to_operate(product: Product) -> None:
    assert product.run("load", "alpha", key="operate").exit_code == 0
    assert product.run("switch", "beta", key="operate").stdout.startswith("beta is ready")
    assert product.run("unload", "beta", key="operate").exit_code == 0
    assert product.run("load", "missing", key="operate").exit_code == USAGE


@pytest.mark.parametrize(
    "command",
    [("switch",), ("load",), ("unload",), ("pin",), ("unpin",), ("logs",), ("route", "--dry-run"), ("doctor",)],
    ids=lambda each: each[0],
)
def test_the_error_for_an_unknown_model_names_the_existing_ones(product: Product, command: tuple[str, ...]) -> None:
    done = product.run(command[0], "alhpa", *command[1:])
    assert done.exit_code == USAGE
    assert "did you mean alpha?" in done.stderr
    assert "beta" in done.stderr


def test_foreign_text_cannot_move_the_cursor(product: Product) -> None:
    done = product.run("switch", "ringing")
    assert done.exit_code == FAILED
    assert "?[31mout of luck" in done.stderr
    assert "\x1b" not in done.stderr and "\x07" not in done.stderr
    assert done.stderr.count("out of luck") == 2  # the engine's line, and the message


# The same against a supervisor alone, found by the file since no gateway answers.


def test_commands_use_the_supervisor_where_no_gateway_answers(alone: Product) -> None:
    assert alone.run("switch", "first").stdout.startswith("alpha is ready")
    assert [step["event"] for step in alone.lines("switch", "beta")][-1] == "ready"
    assert alone.json("ps")["models"][0]["model"] == "beta"
    assert "beta" in alone.run("ps").stdout
    assert "supervisor" in alone.run("status").stdout
    assert {each["name"] for each in alone.json("status")["profiles"]} == {"alpha", "beta", "broken", "ringing", "slow"}
    assert "5 models" in alone.run("events").stdout
    assert "alpha wrote this" in alone.run("logs", "first").stdout
    assert alone.run("load", "broken").exit_code == FAILED
    assert alone.run("pin", "beta").stdout == "beta is pinned: once loaded, it stays.\n"
    assert alone.run("pin", "beta", "--host", "tower").exit_code == USAGE
    assert alone.json("unpin", "beta")["pinned"] is False
    assert alone.run("unload", "beta").stdout == "beta is unloaded.\n"
    assert next(row for row in alone.json("models") if row["name"] == "beta")["state"] == "unloaded"
    assert alone.run("status", "--url", alone.running.address).exit_code == 0


@pytest.mark.parametrize(
    "command", [("cancel", "x"), ("route", "alpha", "--dry-run"), ("doctor",), ("logs",)], ids=" ".join
)
def test_a_supervisor_rejects_commands_for_gateways(alone: Product, command: tuple[str, ...]) -> None:
    done = alone.run(*command)
    assert done.exit_code == (USAGE if command == ("logs",) else UNREACHABLE)
    assert "is a supervisor" in done.stderr
