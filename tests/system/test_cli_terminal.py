"""The live view and progress bars on a terminal, and that the terminal is left clean."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.flag_file import FlagFile
from fakes.ports import free_port
from system.pseudo_terminal import PseudoTerminal, run_in_terminal
from system.running_gateway import FAKE_ENGINE


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Environment variables that keep state in the test's folder."""
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOSTLER_CACHE")
    return {name: str(tmp_path / name.lower()) for name in names}


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """A configuration file with models that scripted engines serve."""

    def write(*, port: int | None = None, **scripts: dict[str, Any]) -> Path:
        model = tmp_path / "model.gguf"
        model.write_bytes(b"not read by the scripted engine")
        profiles = {
            name: {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(script)}} for name, script in scripts.items()
        }
        document = {
            "gateway": {"listen": [f"127.0.0.1:{port or free_port()}"]},
            "supervisor": {
                "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
                "stop_grace_s": 1.0,
                "listen": f"127.0.0.1:{free_port()}",
            },
            "profiles": profiles,
        }
        path = tmp_path / "hostler.yaml"
        path.write_text(json.dumps(document))
        return path

    return write


def ask(address: str, model: str, **more: Any) -> threading.Thread:
    """Send a request in a thread."""

    def work() -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        except OSError:
            pass  # aborted, as some tests intend

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def address_in(text: str) -> str:
    found = re.search(r"listens on (http://\S+)", text)
    assert found is not None
    return found[1]


def is_clean(shown: PseudoTerminal) -> bool:
    """Whether no terminal mode was changed, and the view has been removed."""
    modes = re.search(rb"\x1b\[\?|\x1b[78=>]|\x1bc", shown.raw)
    return modes is None and re.search(rb"has stopped\.\s*$", shown.raw) is not None


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (60, 20), (120, 40)])
def test_the_live_view_shows_a_load_an_answer_and_the_end(
    file: Callable[..., Path], home: dict[str, str], flags: Callable[[str], FlagFile], columns: int, lines: int
) -> None:
    ready = flags("ready")
    path = file(a={"ready_when": ready.path}, b={})
    with run_in_terminal("up", "--config", str(path), columns=columns, lines=lines, environ=home) as shown:
        address = address_in(shown.until("not loaded: a, b"))
        asked = ask(address, "a")
        loading = shown.until("not loaded: b")
        assert "starting" in loading or "loading" in loading
        shown.until("place 1")
        ready.set()
        asked.join(30)
        answered = shown.until(" ok ")
        assert "local" in answered
        shown.press(b"\x03")
        shown.until("SIGINT received, finishing requests in progress")
        assert shown.end() == 0
        assert is_clean(shown)
        assert "Traceback" not in shown.text


def test_ctrl_c_waits_for_answers_and_a_second_one_aborts_them(
    file: Callable[..., Path], home: dict[str, str], flags: Callable[[str], FlagFile]
) -> None:
    path = file(a={"last_when": flags("never").path})
    with run_in_terminal("up", "--config", str(path), environ=home) as shown:
        address = address_in(shown.until("Ctrl-C to stop ·"))
        asked = ask(address, "a", stream=True)
        shown.until("generating")
        shown.press(b"\x03")
        assert "Stopping" in shown.until("Ctrl-C again aborts")
        shown.until("generating")
        shown.until("generating")  # a second signal right after the first one would be taken for a repetition
        shown.press(b"\x03")
        assert "Stopping now" in shown.until("at once")
        assert shown.end() == 0
        asked.join(30)
        assert is_clean(shown)
        assert "broken 503" in shown.text or "stopping now" in shown.text


def test_the_log_scrolls_above_the_view(file: Callable[..., Path], home: dict[str, str]) -> None:
    path = file(a={"exit_code": 1, "stderr": "no luck today"})
    with run_in_terminal("up", "--config", str(path), environ=home) as shown:
        address = address_in(shown.until("Ctrl-C to stop ·"))
        ask(address, "a").join(30)
        shown.until("warning: failed")
        assert "req-" in shown.until("Ctrl-C to stop ·")
        shown.press(b"\x03")
        assert shown.end() == 0


def test_the_view_follows_the_size_of_the_window(file: Callable[..., Path], home: dict[str, str]) -> None:
    path = file(a={}, b={})
    with run_in_terminal("up", "--config", str(path), columns=120, lines=30, environ=home) as shown:
        shown.until("hostler --help")
        shown.resize(30, 12)
        narrow = shown.until("hostler ps")
        assert all(len(line) < 30 for line in narrow.splitlines())
        shown.resize(120, 30)
        shown.until("hostler --help")
        shown.press(b"\x03")
        assert shown.end() == 0


def test_a_supervisor_has_a_view_of_its_own(file: Callable[..., Path], home: dict[str, str]) -> None:
    path = file(a={})
    with run_in_terminal("supervisor", "--config", str(path), environ=home) as shown:
        shown.until("not loaded: a")
        assert "supervisor" in shown.text
        shown.press(b"\x03")
        shown.until("Stopping")
        assert shown.end() == 0
        assert "hostler 0.1.0 has stopped." in shown.text


@pytest.mark.parametrize(
    ("more", "environ"),
    [(["--plain"], {}), (["--log-format", "json"], {}), ([], {"TERM": "dumb"})],
    ids=["--plain", "json", "TERM=dumb"],
)
def test_the_view_is_off_where_it_is_not_wanted(
    file: Callable[..., Path], home: dict[str, str], more: list[str], environ: dict[str, str]
) -> None:
    path = file(a={})
    with run_in_terminal("up", "--config", str(path), *more, environ={**home, **environ}) as shown:
        address = address_in(shown.until("Press Ctrl-C to stop."))
        ask(address, "a").join(30)
        shown.until("openai.chat")
        shown.press(b"\x03")
        assert shown.end() == 0
        assert b"\x1b" not in shown.raw
        assert "not loaded" not in shown.text


def test_no_color_is_respected(file: Callable[..., Path], home: dict[str, str]) -> None:
    path = file(a={})
    with run_in_terminal("up", "--config", str(path), environ={**home, "NO_COLOR": "1"}) as shown:
        shown.until("not loaded: a")
        shown.press(b"\x03")
        assert shown.end() == 0
        assert not re.search(rb"\x1b\[[0-9;]*m", shown.raw)


def test_paused_terminal_output_blocks_nothing(file: Callable[..., Path], home: dict[str, str]) -> None:
    path = file(a={})
    with run_in_terminal("up", "--config", str(path), environ=home) as shown:
        address = address_in(shown.until("Ctrl-C to stop ·"))
        # From here on the terminal is not read.
        for _ in range(40):
            ask(address, "missing").join(30)
        with urllib.request.urlopen(f"{address}/healthz", timeout=30) as answer:
            assert answer.status == 200
        shown.process.terminate()
        assert shown.process.wait(40) == 0


def test_the_view_is_redrawn_after_a_suspension(file: Callable[..., Path], home: dict[str, str]) -> None:
    path = file(a={})
    with run_in_terminal("up", "--config", str(path), environ=home) as shown:
        shown.until("hostler --help")
        for _ in range(3):
            shown.process.send_signal(signal.SIGSTOP)
            shown.idle(0.5)
            before = len(shown.raw)
            shown.process.send_signal(signal.SIGCONT)
            shown.until("hostler --help")
            # What another program has written in the meantime is not erased.
            assert b"\x1b[1A" not in shown.raw[before : shown.raw.index(b"not loaded: a", before)]
        shown.press(b"\x03")
        assert shown.end() == 0


def test_a_switch_is_shown_with_its_phases(
    file: Callable[..., Path], home: dict[str, str], flags: Callable[[str], FlagFile]
) -> None:
    ready = flags("ready")
    path = file(a={"ready_when": ready.path})
    config = ("--config", str(path))
    with run_in_terminal("up", *config, environ=home) as shown:
        shown.until("not loaded: a")
        with run_in_terminal("switch", "a", *config, environ=home) as switching:
            switching.until("a: loading")
            ready.set()
            assert switching.end() == 0
            assert re.search(r"a is ready after .+ \(.*loading", switching.text)
        with run_in_terminal("ps", *config, columns=60, environ=home) as listing:
            assert listing.end() == 0
            assert "ready" in listing.text
            assert all(len(line) <= 60 for line in listing.text.splitlines())


def test_long_names_leave_room_for_the_other_columns(file: Callable[..., Path], home: dict[str, str]) -> None:
    names = [f"company/model-of-30-billion-parameters-for-code-instruct-{kind}-gguf" for kind in ("q4", "q5")]
    path = file(**{name: {} for name in names})
    config = ("--config", str(path))
    with run_in_terminal("up", *config, environ=home) as shown:
        address = address_in(shown.until("Ctrl-C to stop ·"))
        for name in names:
            ask(address, name).join(30)
        for command, words in (("status", ["STATE", "NOTE", "loaded"]), ("models", ["STATE", "CONTEXT", "unloaded"])):
            with run_in_terminal(command, *config, environ=home) as listing:
                assert listing.end() == 0
                assert all(word in listing.text for word in words)
                assert [line for line in listing.text.splitlines() if len(line) > 80] == []
                cut = {line.split("  ")[0].strip() for line in listing.text.splitlines() if line.startswith("company")}
                assert len(cut) == 2
        with run_in_terminal("events", *config, environ=home) as listing:
            assert listing.end() == 0
            assert re.search(r"ok +company\S+ +local +\d+ m?s", listing.text)
        with run_in_terminal("status", *config, columns=160, environ=home) as listing:
            assert listing.end() == 0
            assert all(name in listing.text for name in names)


@pytest.mark.engine
def test_the_view_shows_the_real_engine_switching_and_answering(
    tmp_path: Path, home: dict[str, str], real_model: Path
) -> None:
    path = tmp_path / "hostler.yaml"
    common = {"model": str(real_model), "threads": 1}
    profiles = {"short": {**common, "context": 1024}, "long": {**common, "context": 2048}}
    document = {
        "gateway": {"listen": [f"127.0.0.1:{free_port()}"]},
        "supervisor": {"engine": "embedded"},
        "profiles": profiles,
    }
    path.write_text(json.dumps(document))
    with run_in_terminal("up", "--config", str(path), environ=home) as shown:
        address = address_in(shown.until("not loaded: "))
        for name in profiles:
            asked = ask(address, name, max_tokens=20)
            shown.until("loading ")
            asked.join(60)
            shown.until(f"{name}: ready after")
            shown.until(" ok ")
        shown.press(b"\x03")
        assert shown.end() == 0
        assert is_clean(shown)
