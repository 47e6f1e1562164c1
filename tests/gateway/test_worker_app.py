"""Which routes a worker serves itself: those that ask a model; all others are the main process's."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import pytest
from fakes.requests import target
from fakes.serving_parts import BACKENDS

from hostler.adapters.registry import load_adapters
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.auth import keys
from hostler.gateway.backends.cost import DailySpending
from hostler.gateway.config import ConfigError, read
from hostler.gateway.conversation_places import AnsweredPrompt
from hostler.gateway.worker_app import WorkerApp
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import (
    ActiveModel,
    BreakerHint,
    ConversationAnswered,
    FrameToWorker,
    ServerModels,
    SpendingChanged,
    SpendingState,
    StateQuery,
    WorkerStart,
)
from hostler.supervisor.contract import PromptIdentity

NOTHING = SpendingState(DailySpending(day=""), 0.0, 0.0, 0)


class MainProcess:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[msgspec.Struct] = []

    def send(self, frame: msgspec.Struct) -> None:
        self.sent.append(frame)


def worker(
    folder: Path,
    text: str = BACKENDS,
    main: MainProcess | None = None,
    *,
    keys_needed: bool = False,
    conversations: tuple[bytes, tuple[AnsweredPrompt, ...]] | None = None,
) -> WorkerApp:
    file = folder / "hostler.yaml"
    file.write_text(text, encoding="utf-8")
    start = WorkerStart(
        number=1, release="1", settings=read(file, {}).settings, keys_needed=keys_needed, sockets=(), others={}, forward_to="/m", secret="s", supervisor=None, presets={},
        models={}, profiles={}, joined=(), active=None, spending=NOTHING, log_level=20, conversations=conversations,
    )  # fmt: skip
    return WorkerApp(start, cast(Channel[FrameToWorker], main or MainProcess()))


def served(app: WorkerApp) -> set[str]:
    return {
        operation.path
        for adapter in load_adapters()
        for operation in adapter.operations
        if app.serves(operation) and not operation.path.endswith("/")
    }


def test_it_serves_what_asks_a_model(tmp_path: Path) -> None:
    found = served(worker(tmp_path))
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/api/chat", "/completion"} <= found
    assert not found & {"/v1/models", "/api/tags", "/api/pull", "/api/create", "/v1/responses"}
    assert not any("{" in path for path in found)


def test_responses_that_nothing_stores_are_served_here(tmp_path: Path) -> None:
    text = BACKENDS.replace("gateway:", "gateway:\n  responses: {store: 'off'}")
    assert "/v1/responses" in served(worker(tmp_path, text))


def test_it_knows_what_the_main_process_reports(tmp_path: Path) -> None:
    app = worker(tmp_path, BACKENDS.replace(", models: {big: big}", ""))
    app.receive(ServerModels("cloud", (RemoteModel(name="found"),)))
    app.receive(BreakerHint("cloud", None, "open", 60.0))
    app.receive(
        SpendingChanged(
            msgspec.structs.replace(
                NOTHING, day=DailySpending(day=app.serving.chain.spending.day.day, spent={"cloud": 2.0})
            )
        )
    )
    app.receive(ActiveModel("big"))
    assert app.serving.catalog.find("cloud/found").model
    assert not app.serving.chain.hops["cloud"].breakers.allows("m", app.serving.clock())
    assert app.serving.chain.spending.today == 2.0
    with pytest.raises(TypeError, match="StateQuery"):
        app.receive(StateQuery(1))


def test_it_reports_its_own_breakers_but_not_those_it_follows(tmp_path: Path) -> None:
    main = MainProcess()
    app = worker(tmp_path, main=main)
    app.receive(BreakerHint("cloud", "m", "open", 60.0))
    assert main.sent == []
    hop = app.serving.chain.hops["cloud"]
    hop.breakers.host.trip(app.serving.clock(), 30.0)
    (hint,) = main.sent
    assert isinstance(hint, BreakerHint)
    assert (hint.backend, hint.model, hint.state, round(hint.seconds)) == ("cloud", None, "open", 30)


def test_whether_keys_are_needed_was_decided_by_the_main_process(tmp_path: Path) -> None:
    """The key file may have become empty, or have got its first key, before a worker starts again."""
    text = BACKENDS.replace("gateway:", f"gateway:\n  api_keys_file: {tmp_path}/keys")
    emptied = worker(tmp_path, text, keys_needed=True).serving.keys
    assert emptied is not None
    assert emptied.client("any") is None
    keys.add(tmp_path / "keys", "bob", ["infer"])
    assert worker(tmp_path, text, keys_needed=False).serving.keys is None


def test_a_worker_that_cannot_read_the_keys_does_not_serve(tmp_path: Path) -> None:
    """The main process keeps the keys that it has read; its log says why the worker cannot start again."""
    text = BACKENDS.replace("gateway:", f"gateway:\n  api_keys_file: {tmp_path}/keys")
    worker(tmp_path, text, keys_needed=True)
    (tmp_path / "keys").write_text("no key")
    with pytest.raises(ConfigError, match="keys"):
        worker(tmp_path, text, keys_needed=True)


def test_it_knows_where_conversations_are_and_says_what_it_learns(tmp_path: Path) -> None:
    text = (
        "backends:\n  pc: {kind: supervisor, url: 'http://pc:1'}\n  attic: {kind: supervisor, url: 'http://attic:1'}\n"
    )
    first, second = (tmp_path / "first", tmp_path / "second")
    first.mkdir()
    second.mkdir()
    main = MainProcess()
    one = worker(first, text, main, conversations=(b"secret", ()))
    prompt = PromptIdentity(marks=((1, 10),))
    one.serving.on_answered(target("attic"), prompt)
    [frame] = [each for each in main.sent if isinstance(each, ConversationAnswered)]
    other = worker(second, text, conversations=(b"secret", (frame.answered,)))
    hints = other.serving.host_choice.hints
    assert hints is not None
    assert hints.find("m", prompt, ["pc", "attic"]) == ("attic", 10)
    one.serving.on_answered(target("pc"), later := PromptIdentity(marks=((2, 20),)))
    other.receive(next(each for each in main.sent[::-1] if isinstance(each, ConversationAnswered)))
    assert hints.find("m", later, ["pc", "attic"]) == ("pc", 20)
    # Without a cluster there is nothing to know.
    alone = worker(first, text)
    alone.receive(frame)
    alone.serving.on_answered(target("pc"), prompt)
    assert alone.serving.host_choice.hints is None
