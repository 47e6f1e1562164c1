"""Prompts and answers: recorded where that was switched on, for operators, within bounds; else nowhere."""

from __future__ import annotations

import logging
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from system.running_gateway import RunningGateway, StartGateway, write_keys

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio

SECRET = "a secret word"


def switched_on(folder: Path, **more: Any) -> dict[str, Any]:
    return {"recording": {"contents": True, "file": str(folder / "state" / "contents.sqlite3"), **more}}


async def asked(gateway: RunningGateway, *, key: str | None = None, stream: bool = False) -> str:
    messages = [{"role": "user", "content": SECRET}]
    answer = await gateway.chat("a", key=key, messages=messages, stream=stream)
    return str(answer.headers["x-request-id"])


async def test_an_operator_reads_prompt_and_answer(start_gateway: StartGateway, tmp_path: Path) -> None:
    file = tmp_path / "state" / "contents.sqlite3"
    async with start_gateway({"a": {}}, gateway=switched_on(tmp_path)) as gateway:
        for stream in (False, True):
            found = await gateway.http.get("/admin/contents", params={"id": await asked(gateway, stream=stream)})
            ((recorded),) = found.json()
            assert SECRET in recorded["request"]
            assert "word0" in recorded["answer"]
            assert recorded["truncated"] == []
        assert (await gateway.status())["recording"] is True
        assert (await gateway.http.get("/admin/contents", params={"id": "req-none"})).status_code == 404
        assert (
            "prompts and answers are recorded" in (await gateway.http.get("/ui/", headers={"Accept": "text/html"})).text
        )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_scope_read_does_not_allow_reading_contents(start_gateway: StartGateway, tmp_path: Path) -> None:
    path, of = write_keys(tmp_path, anna=0)
    reader = keys.add(tmp_path / "keys", "reader", ["read", "infer"])
    async with start_gateway({"a": {}}, gateway={**switched_on(tmp_path), "api_keys_file": path}) as gateway:
        params = {"id": await asked(gateway, key=of["anna"])}
        statuses = [
            (
                await gateway.http.get("/admin/contents", params=params, headers={"Authorization": f"Bearer {key}"})
            ).status_code
            for key in (reader, of["anna"])
        ]
        assert statuses == [403, 200]
    assert of["anna"].encode() not in (tmp_path / "state" / "contents.sqlite3").read_bytes()


async def test_nothing_is_recorded_by_default(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    recording = {"file": str(tmp_path / "state" / "contents.sqlite3")}
    async with start_gateway({"a": {}}, gateway={"recording": recording}) as gateway:
        answer = await gateway.http.get("/admin/contents", params={"id": await asked(gateway)})
        assert (answer.status_code, "gateway.recording.contents" in answer.json()["error"]["message"]) == (404, True)
        assert (await gateway.status())["recording"] is False
        assert "are recorded" not in (await gateway.http.get("/ui/", headers={"Accept": "text/html"})).text
    assert not (tmp_path / "state").exists()
    assert SECRET not in caplog.text


async def test_a_warning_names_the_file_left_from_earlier_recording(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on = switched_on(tmp_path)
    async with start_gateway({"a": {}}, gateway=on) as gateway:
        await asked(gateway)
    assert SECRET.encode() in (tmp_path / "state" / "contents.sqlite3").read_bytes()
    async with start_gateway({"a": {}}, gateway={"recording": {**on["recording"], "contents": False}}):
        assert "contents.sqlite3 still contains recorded prompts and answers" in caplog.text


async def test_logs_and_events_never_hold_contents(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with start_gateway({"a": {}}, gateway=switched_on(tmp_path)) as gateway:
        await asked(gateway)
        texts = [(await gateway.http.get(path)).text for path in ("/admin/status", "/admin/history", "/metrics")]
    assert all(SECRET not in text for text in (*texts, caplog.text))


async def test_a_disk_error_is_logged_once_and_raises_nothing(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("")
    async with start_gateway({"a": {}}, gateway=switched_on(tmp_path)) as gateway:
        assert (await gateway.chat("a")).status_code == 200
        assert (await gateway.http.get("/admin/contents", params={"id": await asked(gateway)})).status_code == 404
    assert "cannot record contents" in caplog.text


async def test_long_contents_are_truncated(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with start_gateway({"a": {}}, gateway=switched_on(tmp_path)) as gateway:
        answer = await gateway.chat("a", messages=[{"role": "user", "content": "x" * 2 * 1024**2}])
        ((found),) = (await gateway.http.get("/admin/contents", params={"id": answer.headers["x-request-id"]})).json()
    assert (found["truncated"], len(found["request"])) == (["request"], 1024**2)
    with sqlite3.connect(tmp_path / "state" / "contents.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM contents").fetchone() == (1,)
    database.close()
