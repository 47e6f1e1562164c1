"""The history: kept over restarts, bounded, and the figures computed from it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from hostler.gateway.events import AttemptOutcome, BreakerChanged, Event, RequestFinished, SwitchChanged
from hostler.gateway.telemetry.history import History, Sample
from hostler.gateway.telemetry.history_schema import open_database
from hostler.supervisor.contract import FirstAnswer, SwitchMoved

pytestmark = pytest.mark.anyio

LIMITS = {"requests": 10, "switches": 10, "breakers": 10, "moments": 10}


class WallClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def request(number: int = 0, at: float = 1_000_000.0, **more: object) -> RequestFinished:
    fields = {"status": 200, "outcome": "ok", "backend": "local", "model": "a", "seconds": 3.0, **more}
    return RequestFinished(id=f"req-{number}", at=at, protocol="openai", operation="chat", client="anna", **fields)  # type: ignore[arg-type]


def switch(phase: str, elapsed_s: float = 2.0) -> SwitchChanged:
    return SwitchChanged(backend="local", switch=SwitchMoved(id="s", model="a", phase=phase, elapsed_s=elapsed_s))  # type: ignore[arg-type]


def history(file: Path | None, time: WallClock | None = None) -> History:
    return History(
        file, sample=lambda: Sample(waiting=1, serving=2, memory={"local": 7}), limits=LIMITS, wall=time or WallClock()
    )


async def run_with(file: Path | None, *events: Event) -> None:
    """A gateway that sees these events and stops."""
    subject = history(file)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        for event in events:
            subject.on_event(event)
        await subject.flush()
        tasks.cancel_scope.cancel()


async def stored(file: Path | None, kind: str) -> list[dict[str, object]]:
    """The entries that the next gateway reads."""
    subject = history(file)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        entries = await subject.entries(kind)  # type: ignore[arg-type]
        tasks.cancel_scope.cancel()
    return [msgspec.json.decode(each.event) for each in entries]


async def test_requests_switches_and_breakers_survive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history.sqlite3"
    opened = BreakerChanged(backend="cloud", model=None, state="open", previous="closed")
    await run_with(file, request(1), switch("starting"), switch("ready"), opened)
    assert [each["id"] for each in await stored(file, "requests")] == ["req-1"]
    assert [each["switch"]["phase"] for each in await stored(file, "switches")] == ["ready"]  # type: ignore[index]
    assert [each["state"] for each in await stored(file, "breakers")] == ["open"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_switch_that_is_reported_again_with_its_first_answer_has_one_entry(
    tmp_path: Path, restarted: bool
) -> None:
    file = tmp_path / "history.sqlite3"
    end = switch("ready")
    other = msgspec.structs.replace(end, backend="far")
    answer = FirstAnswer(prompt=900, cached=840)
    answered = msgspec.structs.replace(end, switch=msgspec.structs.replace(end.switch, first_answer=answer))
    if restarted:
        await run_with(file, end, other)
        await run_with(file, answered)
    else:
        await run_with(file, end, other, answered)
    entries: list[Any] = await stored(file, "switches")
    found = [(each["backend"], each["switch"]["first_answer"]) for each in entries]
    assert found == [("far", None), ("local", {"prompt": 900, "cached": 840})]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon((subject := history(file)).run)
        (now,) = await subject.figures(seconds=60.0, buckets=1)
        tasks.cancel_scope.cancel()
    assert now.switches == 2


async def test_only_the_newest_entries_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    await run_with(file, *(request(number) for number in range(25)))
    await run_with(file, *(request(number) for number in range(25, 30)))
    assert [each["id"] for each in await stored(file, "requests")] == [f"req-{n}" for n in range(29, 19, -1)]


async def test_model_lists_and_health_checks_are_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    await run_with(file, request(1), *(request(number, backend=None) for number in range(2, 50)))
    assert [each["id"] for each in await stored(file, "requests")] == ["req-1"]


async def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "history.sqlite3"
    file.write_bytes(b"no database at all " * 100)
    await run_with(file, request(1))
    assert [each["id"] for each in await stored(file, "requests")] == ["req-1"]
    assert (tmp_path / "history.sqlite3.damaged").exists()
    assert ": damaged (" in caplog.text


async def test_a_file_that_is_damaged_further_in_is_moved_aside_when_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "history.sqlite3"
    for number in range(8):
        await run_with(file, request(number, requested_model="x" * 3000))  # a page for each
    pages = bytearray(file.read_bytes())
    page = pages.index(b'"req-0"') // 4096 * 4096
    pages[page : page + 4096] = bytes(4096)
    file.write_bytes(pages)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon((subject := history(file)).run)
        assert [each.n for each in await subject.entries("requests", limit=3)] == [8, 7, 6]
        assert await subject.answer_times() == {}
        subject.on_event(request(9))
        assert len(await subject.entries("requests")) == 1
        tasks.cancel_scope.cancel()
    assert [each["id"] for each in await stored(file, "requests")] == ["req-9"]
    assert caplog.text.count(": damaged (") == 1


@pytest.mark.parametrize("body", [b"\x00rubbish", b"[{}", b'{"at": "\xff"}', b'{"at": "noon"}', "text", 7])
async def test_unreadable_rows_are_skipped(tmp_path: Path, body: object) -> None:
    file, time = tmp_path / "history.sqlite3", WallClock()
    await run_with(file, request(1), switch("ready"))
    with closing(sqlite3.connect(file)) as database, database:
        for table in ("requests", "switches", "moments"):
            database.execute(f"UPDATE {table} SET n = n + 1")
            for n in (1, 3):
                values = (n, time.now, body)
                database.execute(f"INSERT INTO {table} (n, at, body) VALUES (?, ?, ?)", values)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon((subject := history(file, time)).run)
        assert [each.n for each in await subject.entries("requests")] == [2]
        assert await subject.answer_times() == {"local": {"a": [3.0]}}
        (now,) = await subject.figures(seconds=60.0, buckets=1)
        assert (now.requests, now.switches, now.memory) == (1, 1, 7)
        tasks.cancel_scope.cancel()


async def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    await run_with(tmp_path / "file" / "history.sqlite3", request(1), request(2))
    assert caplog.text.count("cannot write history") == 1


async def test_without_a_file_it_is_kept_in_memory() -> None:
    subject = history(None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        subject.on_event(request(1))
        assert len(await subject.entries("requests")) == 1
        tasks.cancel_scope.cancel()


async def test_pages_join(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    await run_with(file, *(request(number) for number in range(6)))
    subject = history(file)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        first = await subject.entries("requests", limit=4)
        rest = await subject.entries("requests", limit=4, before=first[-1].n)
        tasks.cancel_scope.cancel()
    ids = [msgspec.json.decode(each.event)["id"] for each in (*first, *rest)]
    assert ids == [f"req-{number}" for number in range(5, -1, -1)]


async def test_requests_that_share_a_row_are_paged_and_limited_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    subject = History(
        file, sample=lambda: Sample(waiting=0, serving=0), limits={**LIMITS, "requests": 120}, wall=WallClock()
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        for number in range(250):
            subject.on_event(request(number))
        await subject.flush()
        subject.on_event(request(250))
        seen: list[tuple[int, str]] = []
        before: int | None = None
        while page := await subject.entries("requests", limit=7, before=before):
            seen += [(each.n, msgspec.json.decode(each.event)["id"]) for each in page]
            before = page[-1].n
        tasks.cancel_scope.cancel()
    assert seen == [(number + 1, f"req-{number}") for number in range(250, 130, -1)]


async def test_figures_are_those_of_each_bucket() -> None:
    time = WallClock()
    subject = history(None, time)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        await subject.flush()
        for number, first_token_s in enumerate((0.2, 0.4, 0.9)):
            subject.on_event(
                request(number, at=time.now - 90, first_token_s=first_token_s, completion_tokens=11, queue_s=1.5)
            )
        subject.on_event(request(3, at=time.now - 30, outcome="failed", first_token_s=None))
        subject.on_event(switch("failed", 4.0))
        early, late = await subject.figures(seconds=120, buckets=2)
        tasks.cancel_scope.cancel()
    assert (early.requests, early.failed, early.first_token_s, early.queue_s) == (3, 0, 0.4, 1.5)
    assert early.tokens_per_s == pytest.approx(10 / 2.6, abs=0.01)
    assert (late.requests, late.failed, late.first_token_s) == (1, 1, None)
    assert (late.switches, late.switch_s, late.memory, late.waiting) == (1, 4.0, 7, 1)


async def test_answer_times_are_by_model_without_queue_and_switch(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    await run_with(
        file,
        request(1, seconds=9.0, queue_s=2.0, switch_s=4.0),
        request(2, seconds=1.5, model="b"),
        request(3, seconds=7.0, outcome="broken"),
        request(4, seconds=0.5),
        request(5, seconds=8.0, attempts=(AttemptOutcome(backend="pc", outcome="busy", seconds=1.0),) * 2),
        request(6, seconds=2.5, backend="cloud"),
    )
    subject = history(file)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        assert await subject.answer_times() == {"local": {"a": [3.0, 0.5], "b": [1.5]}, "cloud": {"a": [2.5]}}
        for number in range(30):
            subject.on_event(request(number, seconds=float(number)))
        assert (await subject.answer_times())["local"]["a"] == [float(number) for number in range(10, 30)]
        tasks.cancel_scope.cancel()


async def test_there_are_no_answer_times_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    subject = history(tmp_path / "file" / "history.sqlite3")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        assert await subject.answer_times() == {}
        tasks.cancel_scope.cancel()


OLD_REQUESTS = [
    {
        "id": "req-1", "at": 1.0, "outcome": "left", "asked": "b", "first_word_s": 0.5,
        "reason": "cloud: key_refused; b: spent",
        "attempts": [{"backend": "cloud", "outcome": "key_refused", "seconds": 1.0}],
        "passed": [{"backend": "cloud", "why": "key_refused"}, {"backend": "b", "why": "spent"}],
    },
    {"id": "req-2", "at": 2.0, "outcome": "failed", "reason": "status 404: cannot say", "passed": []},
]  # fmt: skip


async def test_files_of_an_earlier_version_are_upgraded(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    await run_with(file)
    old_switch = {"type": "switch", "switch": {"phase": "ready", "spent": {"loading": 1.5}}}
    old_breaker = {"type": "breaker", "state": "open", "before": "closed"}
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA user_version = 0")
        rows = [("requests", 2, OLD_REQUESTS), ("switches", 1, old_switch), ("breakers", 1, old_breaker)]
        for table, n, event in rows:
            values = (n, 5.0, msgspec.json.encode(event))
            database.execute(f"INSERT INTO {table} (n, at, body) VALUES (?, ?, ?)", values)
        database.execute("INSERT INTO requests (n, at, body) VALUES (9, 0, 'rubbish')")
    for _ in range(2):
        second, first = await stored(file, "requests")
        assert (second["outcome"], second["reason"]) == ("failed", "status 404: cannot say")
        assert (first["outcome"], first["requested_model"], first["first_token_s"]) == ("client_disconnected", "b", 0.5)
        assert first["reason"] == "cloud: auth_failed; b: budget_exhausted"
        assert first["attempts"] == [{"backend": "cloud", "outcome": "auth_failed", "seconds": 1.0}]
        assert first["failed_hops"] == [
            {"backend": "cloud", "reason": "auth_failed"},
            {"backend": "b", "reason": "budget_exhausted"},
        ]
        (moved,) = await stored(file, "switches")
        assert moved["switch"] == {"phase": "ready", "phase_seconds": {"loading": 1.5}}
        (breaker,) = await stored(file, "breakers")
        assert breaker["previous"] == "closed"


async def test_a_file_that_cannot_be_upgraded_is_used_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "history.sqlite3"
    await run_with(file)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA user_version = 0")
        body = msgspec.json.encode(OLD_REQUESTS)
        database.execute("INSERT INTO requests (n, at, body) VALUES (2, 5.0, ?)", (body,))
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON requests BEGIN SELECT RAISE(ABORT, 'no'); END")
    with closing(open_database(str(file))) as opened, opened:
        assert opened.execute("SELECT count(*) FROM requests").fetchone() == (1,)
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with closing(open_database(str(file))) as opened:
            assert opened.execute("SELECT count(*) FROM requests").fetchone() == (1,)
    assert "older events not upgraded" in caplog.text


async def test_what_was_taken_over_and_how_far_survive_a_restart_together(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    for number, position in enumerate((b"first", b"second")):
        subject = history(file)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(subject.run)
            assert await subject.position("log") == (b"", b"first")[number]
            assert await subject.position("another") == b""
            subject.take_over([request(number, gateway="b")], "log", position)
            tasks.cancel_scope.cancel()
    assert [(each["id"], each["gateway"]) for each in await stored(file, "requests")] == [
        ("req-1", "b"),
        ("req-0", "b"),
    ]


async def test_answer_times_of_other_gateways_are_left_out() -> None:
    subject = History(None, sample=lambda: Sample(waiting=0, serving=0), wall=WallClock(), gateway="a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        for seconds, gateway in ((1.0, "a"), (2.0, "b"), (3.0, None)):
            subject.on_event(request(seconds=seconds, gateway=gateway))
        assert await subject.answer_times() == {"local": {"a": [1.0, 3.0]}}
        tasks.cancel_scope.cancel()
