"""The live view: when it opens and closes, and that it follows state and events."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import anyio
import pytest

from hostler.adapters.model_list import ModelCard
from hostler.gateway.admin.status import StatusView
from hostler.gateway.cli.live import LiveView
from hostler.gateway.cli.logging import LogHandler
from hostler.gateway.events import RequestFinished, SwitchChanged
from hostler.supervisor.contract import SwitchMoved, SwitchPhase

pytestmark = pytest.mark.anyio


class Output:
    """What was written to standard output so far."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.text = ""

    async def until(self, text: str) -> None:
        with anyio.fail_after(20):
            while text not in self.text:
                await anyio.sleep(0.01)
                self.text += self._capfd.readouterr().out


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Output:
    return Output(capfd)


@pytest.fixture
def log() -> Iterator[LogHandler]:
    handler = LogHandler(lambda record: None)
    yield handler
    handler.close()


def status(*names: str) -> StatusView:
    models = tuple(ModelCard(name=name) for name in names)
    return StatusView(version="1", active=None, default=None, models=models, hosts=())


def finished(model: str) -> RequestFinished:
    return RequestFinished(
        id="req-1", at=1000.0, protocol="openai", operation="chat", client="laptop", outcome="ok", status=200,
        seconds=2.0, model=model, backend="box",
    )  # fmt: skip


def switched(phase: SwitchPhase) -> SwitchChanged:
    return SwitchChanged(backend="local", switch=SwitchMoved(id="1", model="beta", phase=phase))


async def test_it_opens_when_the_process_serves_and_leaves_a_last_line(log: LogHandler, output: Output) -> None:
    view = LiveView(log)
    async with view.shown(lambda: status("alpha")):
        await anyio.sleep(0.05)
        assert output.text == ""
        view.begin("the banner", "hostler 1, supervisor", ["http://127.0.0.1:8000"])
        await output.until("not loaded: alpha")
    await output.until("hostler 1 has stopped.")
    assert output.text.index("the banner") < output.text.index("http://127.0.0.1:8000")


async def test_it_follows_the_state_and_events(log: LogHandler, output: Output) -> None:
    view = LiveView(log)
    current = status("alpha", "beta")
    async with view.shown(lambda: current):
        view.begin("the banner", "hostler 1", [])
        await output.until("not loaded: alpha, beta")
        view.on_event(switched("starting"))
        await output.until("starting")
        view.on_event(switched("ready"))
        view.on_event(finished("gamma"))
        await output.until("gamma")
        current = status("delta")
        await output.until("not loaded: delta")
        view.stopping("Stopping: a very long sentence that does not fit into a terminal of 80 columns at all|Stopping.")
        await output.until("Stopping.")


async def test_nothing_is_drawn_while_nothing_changes(log: LogHandler, output: Output) -> None:
    view = LiveView(log)
    async with view.shown(lambda: status("alpha")):
        view.begin("the banner", "hostler 1", [])
        await output.until("not loaded: alpha")
        output.text = ""
        await anyio.sleep(0.6)
        with pytest.raises(TimeoutError), anyio.fail_after(0.1):
            await output.until("not loaded: alpha")


async def test_the_log_is_written_elsewhere_where_standard_error_is_no_terminal(
    log: LogHandler, output: Output
) -> None:
    view = LiveView(log)
    lines: list[str] = []
    log.output = lambda record: lines.append(record.getMessage())
    async with view.shown(lambda: status("alpha")):
        view.begin("the banner", "hostler 1", [])
        await output.until("not loaded: alpha")
        log.handle(logging.LogRecord("hostler", logging.WARNING, __file__, 1, "the disk is full", None, None))
        assert log.wait_until_written(20)
    await output.until("has stopped.")
    assert lines == ["the disk is full"]
    assert "the disk is full" not in output.text
