"""Prompts and answers: recorded where that was switched on, for operators, within bounds; else nowhere."""

from __future__ import annotations

import logging
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from system.house import House, OpenHouse, keys_in

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio

SECRET = "a secret word"


def switched_on(folder: Path, **more: Any) -> dict[str, Any]:
    return {"recording": {"contents": True, "file": str(folder / "state" / "contents.sqlite3"), **more}}


async def asked(house: House, *, key: str | None = None, stream: bool = False) -> str:
    messages = [{"role": "user", "content": SECRET}]
    answer = await house.chat("a", key=key, messages=messages, stream=stream)
    return str(answer.headers["x-request-id"])


async def test_an_operator_reads_prompt_and_answer(open_house: OpenHouse, tmp_path: Path) -> None:
    file = tmp_path / "state" / "contents.sqlite3"
    async with open_house({"a": {}}, gateway=switched_on(tmp_path)) as house:
        for stream in (False, True):
            found = await house.http.get("/admin/contents", params={"id": await asked(house, stream=stream)})
            ((recorded),) = found.json()
            assert SECRET in recorded["request"]
            assert "word0" in recorded["answer"]
            assert recorded["truncated"] == []
        assert (await house.status())["recording"] is True
        assert (await house.http.get("/admin/contents", params={"id": "req-none"})).status_code == 404
        assert (
            "prompts and answers are recorded" in (await house.http.get("/ui/", headers={"Accept": "text/html"})).text
        )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_scope_read_does_not_allow_reading_contents(open_house: OpenHouse, tmp_path: Path) -> None:
    path, of = keys_in(tmp_path, anna=0)
    reader = keys.add(tmp_path / "keys", "reader", ["read", "infer"])
    async with open_house({"a": {}}, gateway={**switched_on(tmp_path), "api_keys_file": path}) as house:
        params = {"id": await asked(house, key=of["anna"])}
        statuses = [
            (
                await house.http.get("/admin/contents", params=params, headers={"Authorization": f"Bearer {key}"})
            ).status_code
            for key in (reader, of["anna"])
        ]
        assert statuses == [403, 200]
    assert of["anna"].encode() not in (tmp_path / "state" / "contents.sqlite3").read_bytes()


async def test_nothing_is_recorded_by_default(
    open_house: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    recording = {"file": str(tmp_path / "state" / "contents.sqlite3")}
    async with open_house({"a": {}}, gateway={"recording": recording}) as house:
        answer = await house.http.get("/admin/contents", params={"id": await asked(house)})
        assert (answer.status_code, "gateway.recording.contents" in answer.json()["error"]["message"]) == (404, True)
        assert (await house.status())["recording"] is False
        assert "are recorded" not in (await house.http.get("/ui/", headers={"Accept": "text/html"})).text
    assert not (tmp_path / "state").exists()
    assert SECRET not in caplog.text


async def test_a_warning_names_the_file_left_from_earlier_recording(
    open_house: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on = switched_on(tmp_path)
    async with open_house({"a": {}}, gateway=on) as house:
        await asked(house)
    assert SECRET.encode() in (tmp_path / "state" / "contents.sqlite3").read_bytes()
    async with open_house({"a": {}}, gateway={"recording": {**on["recording"], "contents": False}}):
        assert "contents.sqlite3 still contains recorded prompts and answers" in caplog.text


async def test_logs_and_events_never_hold_contents(
    open_house: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_house({"a": {}}, gateway=switched_on(tmp_path)) as house:
        await asked(house)
        texts = [(await house.http.get(path)).text for path in ("/admin/status", "/admin/history", "/metrics")]
    assert all(SECRET not in text for text in (*texts, caplog.text))


async def test_a_disk_error_is_logged_once_and_raises_nothing(
    open_house: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("")
    async with open_house({"a": {}}, gateway=switched_on(tmp_path)) as house:
        assert (await house.chat("a")).status_code == 200
        assert (await house.http.get("/admin/contents", params={"id": await asked(house)})).status_code == 404
    assert "cannot record contents" in caplog.text


async def test_long_contents_are_truncated(open_house: OpenHouse, tmp_path: Path) -> None:
    async with open_house({"a": {}}, gateway=switched_on(tmp_path)) as house:
        answer = await house.chat("a", messages=[{"role": "user", "content": "x" * 2 * 1024**2}])
        ((found),) = (await house.http.get("/admin/contents", params={"id": answer.headers["x-request-id"]})).json()
    assert (found["truncated"], len(found["request"])) == (["request"], 1024**2)
    with sqlite3.connect(tmp_path / "state" / "contents.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM contents").fetchone() == (1,)
    database.close()
