"""The live view: what it shows, and that it fits into every window."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from hostler.adapters.model_list import ModelCard
from hostler.gateway.admin.status import EngineView, HostView, StatusView
from hostler.gateway.cli.live_layout import LiveState, log_lines, view_parts
from hostler.gateway.events import RequestFinished, Waiting
from hostler.gateway.in_flight import RequestView
from hostler.gateway.telemetry.access_log import AccessLogRecord, describe
from hostler.supervisor.contract import HostStatus, ModelStatus, SwitchMoved


def status(**more: Any) -> StatusView:
    models = (ModelCard(name="alpha", state="loaded"), ModelCard(name="beta"), ModelCard(name="gamma"))
    processes = (ModelStatus(model="alpha", state="ready", since=1.0, memory_bytes=3 * 1024**3),)
    host = HostView(
        backend="local", reachable=True, host=HostStatus(models=processes), waiting=1, serving=1,
        engines=(EngineView(
            model="alpha", phase="ready", running=1, parallel=4, waiting=2, draining=False, load_s=1.0,
        ),),
        queue=(Waiting(id="req-2", model="beta", client="phone", position=1, waited_s=1.0, eta_s=4.0),),
    )  # fmt: skip
    flights = (
        RequestView(id="req-1", at=1.0, protocol="openai", operation="chat", client="laptop", phase="generating", model="alpha",
               backend="local", first_token_s=0.25),
        RequestView(id="req-2", at=2.0, protocol="openai", operation="chat", client="phone", phase="waiting", model="beta"),
    )  # fmt: skip
    return StatusView(**{
        "version": "1", "active": "alpha", "default": None, "models": models, "hosts": (host,), "in_flight": flights,
        **more,
    })  # fmt: skip


def finished(**more: Any) -> RequestFinished:
    return RequestFinished(**{
        "id": "req-9", "at": 1000.0, "protocol": "openai", "operation": "chat", "client": "laptop", "outcome": "ok",
        "status": 200, "seconds": 2.0, "model": "alpha", "backend": "box", "hop": 1, "first_token_s": 1.0,
        "completion_tokens": 43, **more,
    })  # fmt: skip


def state(**more: Any) -> LiveState:
    return LiveState(**{
        "title": "hostler 1", "addresses": ("http://127.0.0.1:8000", "http://127.0.0.1:8000/ui/"), "status": status(),
        "last": (finished(), finished(outcome="failed", status=503)), **more,
    })  # fmt: skip


def rendered(shown: LiveState, width: int = 100, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(Group(*view_parts(shown, width, height)))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_running_models_requests_in_flight_and_finished_requests_are_shown() -> None:
    text = "\n".join(rendered(state()))
    assert re.search(r"alpha +local +ready +1/4 +2 +3\.0 GiB", text)
    assert "not loaded: beta, gamma" in text
    assert re.search(r"generating +alpha +local .* 250 ms .* laptop", text)
    assert re.search(r"place 1, 4\.0 s +beta", text)
    assert re.search(r"ok +alpha +box, hop 2 +2\.0 s +1\.0 s +42 tokens/s +laptop", text)
    assert "failed 503" in text
    assert "Ctrl-C to stop" in text


def test_a_wait_that_is_not_known_is_not_shown() -> None:
    (host,) = status().hosts
    queue = tuple(msgspec.structs.replace(each, eta_s=None) for each in host.queue)
    shown = status(hosts=(msgspec.structs.replace(host, queue=queue),))
    assert re.search(r"place 1 +beta", "\n".join(rendered(state(status=shown))))


def test_a_switch_is_shown_before_its_model_has_a_process() -> None:
    moved = SwitchMoved(id="1", model="beta", phase="fetching", percent=40.0, eta_s=6.0)
    text = "\n".join(rendered(state(switches=(("local", moved),))))
    assert re.search(r"beta +local +fetching ████░░░░░░ 40 %, 6\.0 s left", text)
    assert "not loaded: gamma" in text


def test_an_unreachable_host_is_shown() -> None:
    silent = HostView(backend="tower", reachable=False, host=None, waiting=0, serving=0)
    assert re.search(r"tower +unreachable", "\n".join(rendered(state(status=status(hosts=(silent,))))))


def test_models_of_other_servers_are_not_called_unloaded() -> None:
    models = (
        ModelCard(name="alpha"),
        ModelCard(name="far", state="available"),
        ModelCard(name="gone", state="unavailable"),
    )
    lines = rendered(state(status=status(models=models, hosts=())))
    assert "not loaded: alpha" in lines
    assert "available elsewhere: far" in lines
    assert "unavailable: gone" in lines


def test_models_that_do_not_fit_are_counted() -> None:
    models = tuple(ModelCard(name=f"a-rather-long-name-of-a-model-{n}") for n in range(30))
    lines = rendered(state(status=status(models=models, hosts=())), 80)
    (line,) = (line for line in lines if line.startswith("not loaded"))
    assert line.endswith("a-rather-long-name-of-a-model-0 and 29 more")


def test_processes_that_do_not_fit_are_counted() -> None:
    processes = tuple(ModelStatus(model=f"m{n}", state="ready", since=1.0) for n in range(30))
    host = HostView(backend="local", reachable=True, host=HostStatus(models=processes), waiting=0, serving=0)
    text = "\n".join(rendered(state(status=status(hosts=(host,))), 80, 23))
    shown = len(re.findall(r"m\d+ +local +ready", text))
    assert f"and {30 - shown} more" in text


@pytest.mark.parametrize("width", [20, 30, 44, 59, 79, 119, 200])
@pytest.mark.parametrize("height", [3, 6, 11, 19, 39, 80])
def test_it_fits_into_every_window(width: int, height: int) -> None:
    flights = tuple(
        RequestView(
            id=f"req-{n}", at=1.0, protocol="openai", operation="chat", client="someone", phase="prefill", model="模型"
        )
        for n in range(60)
    )
    many = state(status=status(in_flight=flights), last=tuple(finished() for _ in range(20)))
    for shown in (state(), many, state(stopping="Stopping: a long sentence that says so.|Stopping.")):
        lines = rendered(shown, width, height)
        assert len(lines) <= height
        assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("height", range(8, 24))
def test_running_models_come_before_others(height: int) -> None:
    cards = (*status().models, ModelCard(name="cloudy", state="available"), ModelCard(name="away", state="unavailable"))
    text = "\n".join(rendered(state(status=status(models=cards)), 80, height))
    assert re.search(r"alpha +local +ready", text), text


def test_there_is_room_for_the_log() -> None:
    assert len(rendered(state(last=tuple(finished() for _ in range(20))), 80, 23)) <= 17


def test_the_first_text_that_fits_shows_that_it_is_stopping() -> None:
    stopping = state(stopping="Stopping: a long sentence that says so.|Stopping.")
    assert rendered(stopping, 60)[-1] == "Stopping: a long sentence that says so."
    assert rendered(stopping, 30)[-1] == "Stopping."


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("hostler.x", level, __file__, 1, text, None, None)


def test_log_lines_have_a_level_from_warning_on() -> None:
    (line,) = (each.plain for each in log_lines(record(logging.WARNING, "the disk is nearly full")))
    assert line.endswith(" warning: the disk is nearly full")
    (line,) = (each.plain for each in log_lines(record(logging.INFO, "alpha is ready")))
    assert line.endswith(":00 alpha is ready") or " alpha is ready" in line
    assert "info" not in line


def test_log_lines_of_requests_are_those_that_failed() -> None:
    events = [finished(), finished(id="req-10", outcome="failed", status=503)]
    (line,) = log_lines(AccessLogRecord([(event.at, describe(event)) for event in events], events))
    assert "req-10" in line.plain


def test_foreign_text_cannot_move_the_cursor() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07"
    shown = state(status=status(models=(ModelCard(name=evil),)), last=(finished(model=evil, client=evil),))
    lines = rendered(shown, 200, 40)
    lines += [line.plain for line in log_lines(record(logging.ERROR, evil))]
    assert not any("\x1b" in line or "\x07" in line for line in lines)
