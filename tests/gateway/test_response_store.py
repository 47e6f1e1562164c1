"""The store of responses: bounded, by client, and kept in a file if there is one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hostler.adapters.stored_response import StoredResponse
from hostler.gateway.response_store import ResponseStore, default_file

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def store(file: Path | None = None, *, max_bytes: int = 100_000, clock: Clock | None = None) -> ResponseStore:
    return ResponseStore(file, max_bytes=max_bytes, max_age_s=60.0, wall=clock or Clock())


def response(number: int, *, previous: int | None = None, size: int = 10, at: float = 1000.0) -> StoredResponse:
    item = msgspec.Raw(b'{"id":"msg_%d"}' % number)
    body = msgspec.Raw(b'"' + b"x" * size + b'"')
    before = None if previous is None else f"resp_{previous}"
    return StoredResponse(id=f"resp_{number}", at=at, body=body, output={f"msg_{number}": item}, previous=before)


def test_each_client_has_its_own() -> None:
    subject = store()
    subject.add("anna", response(1))
    assert subject.of("anna").find("resp_1") == response(1)
    assert subject.of("anna").find_item("msg_1") == msgspec.Raw(b'{"id":"msg_1"}')
    assert (subject.of("ben").find("resp_1"), subject.of("ben").find_item("msg_1")) == (None, None)


def test_the_oldest_are_dropped_beyond_the_size() -> None:
    subject = store(max_bytes=10_000)
    for number in range(20):
        subject.add("anna", response(number, size=1000))
    kept = [number for number in range(20) if subject.find("anna", f"resp_{number}")]
    assert kept == list(range(20 - len(kept), 20)) and 0 < len(kept) < 10
    assert subject.find_item("anna", "msg_0") is None


def test_one_that_is_larger_than_the_store_is_not_kept() -> None:
    subject = store(max_bytes=1000)
    subject.add("anna", response(1, size=5000))
    assert subject.find("anna", "resp_1") is None


def test_old_ones_are_gone() -> None:
    clock = Clock()
    subject = store(clock=clock)
    subject.add("anna", response(1))
    clock.now += 61.0
    assert subject.find("anna", "resp_1") is None
    subject.add("anna", response(2, at=clock.now))
    assert subject.find_item("anna", "msg_1") is None


def test_a_history_is_whole_or_not_there() -> None:
    subject = store()
    for number in (1, 2, 3):
        subject.add("anna", response(number, previous=number - 1 or None))
    history = subject.of("anna").history("resp_3")
    assert history is not None and [each.id for each in history] == ["resp_1", "resp_2", "resp_3"]
    subject.delete("anna", "resp_1")
    assert subject.of("anna").history("resp_3") is None


def test_a_response_without_its_input_cannot_be_continued() -> None:
    subject = store()
    subject.add("anna", msgspec.structs.replace(response(1), complete=False))
    assert subject.of("anna").find("resp_1") is not None
    assert subject.of("anna").history("resp_1") is None


def test_a_history_in_a_circle_ends() -> None:
    subject = store()
    subject.add("anna", response(1, previous=2))
    subject.add("anna", response(2, previous=1))
    assert subject.of("anna").history("resp_1") is None


async def test_a_file_keeps_what_memory_has(tmp_path: Path) -> None:
    file = tmp_path / "new" / "responses.sqlite3"
    subject = store(file)
    for number in (1, 2):
        subject.add("anna", response(number))
    await subject.flush()
    subject.delete("anna", "resp_1")
    await subject.flush()
    assert file.stat().st_mode & 0o777 == 0o600
    later = store(file)
    await later.load()
    assert (later.find("anna", "resp_1"), later.find("anna", "resp_2")) == (None, response(2))


async def test_a_file_that_cannot_be_written_loses_no_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = store(tmp_path)  # a folder
    subject.add("anna", response(1))
    await subject.flush()
    await subject.flush()
    assert subject.find("anna", "resp_1") is not None
    assert "cannot store responses" in caplog.text


def test_the_default_file_is_in_the_state_directory() -> None:
    assert default_file({"STATE_DIRECTORY": "/s:/t"}) == Path("/s/responses.sqlite3")
    assert default_file({"XDG_STATE_HOME": "/x"}) == Path("/x/hostler/responses.sqlite3")


def test_the_client_that_has_most_loses_its_oldest_first() -> None:
    subject = store(max_bytes=10_000)
    subject.add("ben", response(100))
    for number in range(20):
        subject.add("anna", response(number, size=1000))
    assert subject.find("ben", "resp_100") is not None
    assert subject.find("anna", "resp_0") is None and subject.find("anna", "resp_19") is not None


def test_an_id_is_foreign_if_only_others_have_it() -> None:
    subject = store()
    subject.add("anna", response(1))
    subject.add("anna", response(2))
    subject.add("ben", response(2))
    foreign = [
        an_id for an_id in ("resp_1", "msg_1", "resp_2", "msg_2", "resp_3") if subject.of("ben").is_foreign(an_id)
    ]
    assert foreign == ["resp_1", "msg_1"]
    subject.delete("anna", "resp_1")
    assert not subject.of("ben").is_foreign("resp_1")


def test_an_item_stays_as_long_as_a_response_has_it() -> None:
    subject, item = store(), msgspec.Raw(b"{}")
    for name in ("resp_1", "resp_2"):
        subject.add("anna", msgspec.structs.replace(response(1), id=name, output={"msg_1": item}))
    subject.delete("anna", "resp_1")
    assert subject.find_item("anna", "msg_1") == item
    subject.delete("anna", "resp_2")
    assert subject.find_item("anna", "msg_1") is None


def test_items_of_old_responses_are_gone() -> None:
    clock = Clock()
    subject = store(clock=clock)
    subject.add("anna", response(1))
    clock.now += 61
    assert subject.find_item("anna", "msg_1") is None
