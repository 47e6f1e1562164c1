"""A batch over kills of the whole process, and before its host: nothing is lost, and nothing is sent twice but what was in
flight."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fakes.ports import free_port
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE, EngineLog

REQUESTS = 40
ENGINE = {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}"}


def profile(folder: Path) -> dict[str, Any]:
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    script = {"log": str(folder / "engines.log"), "chunks": 2, "chunk_delay": 0.01}
    return {"model": str(model), "parallel": 2, "context": 8192, "env": {"FAKE_ENGINE": json.dumps(script)}}


def gateway(folder: Path) -> dict[str, Any]:
    batches = {"file": str(folder / "batches.sqlite3"), "idle_s": 0, "concurrency": 2}
    return {"listen": ["127.0.0.1:0"], "api_keys_file": None, "batches": batches}


def write_config(folder: Path, name: str = "hostler.yaml", **document: Any) -> str:
    path = folder / name
    path.write_text(json.dumps(document))
    return str(path)


def environment(folder: Path) -> dict[str, str]:
    return {"HOSTLER_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}


def line(number: int) -> bytes:
    body = {"model": "a", "messages": [{"role": "user", "content": f"item {number} of the batch"}]}
    request = {"custom_id": f"item-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request).encode() + b"\n"


def create(client: openai.OpenAI, requests: int) -> str:
    content = b"".join(map(line, range(requests)))
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def until(client: openai.OpenAI, batch_id: str, *, completed: int = 0, status: str | None = None) -> Any:
    """The batch, as soon as so many requests are completed and its status is this."""
    end = time.monotonic() + 60
    while True:
        batch = client.batches.retrieve(batch_id)
        counts = batch.request_counts
        if counts is not None and counts.completed >= completed and status in (None, batch.status):
            return batch
        assert time.monotonic() < end, f"not in time: {batch}"
        time.sleep(0.02)


def test_a_batch_survives_kills_in_the_middle(tmp_path: Path) -> None:
    config = write_config(tmp_path, gateway=gateway(tmp_path), supervisor=ENGINE, profiles={"a": profile(tmp_path)})
    environ, log = environment(tmp_path), EngineLog(tmp_path / "engines.log")
    batch_id, kills = "", 0
    for attempt in range(4):
        with run_hostler(
            "up", "--plain", "--config", config, errors=tmp_path / f"log{attempt}", environ=environ
        ) as hostler:
            client = openai.OpenAI(base_url=f"{hostler.address}/v1", api_key="none", max_retries=5)
            if not batch_id:
                batch_id = create(client, REQUESTS)
            if attempt < 3:
                until(client, batch_id, completed=(attempt + 1) * REQUESTS // 5)
                os.kill(hostler.process.pid, signal.SIGKILL)
                hostler.process.wait()
                kills += 1
                client.close()
                continue
            batch = until(client, batch_id, status="completed")
            results = [json.loads(each) for each in client.files.content(batch.output_file_id).text.splitlines()]
            client.close()
    assert Counter(each["custom_id"] for each in results) == {f"item-{number}": 1 for number in range(REQUESTS)}
    assert (batch.request_counts.total, batch.request_counts.completed) == (REQUESTS, REQUESTS)
    sent = Counter(json.loads(each["body"])["messages"][0]["content"] for each in log.requests("a"))
    assert len(sent) == REQUESTS
    # Two requests at most were in flight at each kill.
    assert sum(sent.values()) - REQUESTS <= 2 * kills


@pytest.mark.parametrize("others", [{}, {"lan": {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"b": "b"}}}])
def test_a_batch_waits_for_a_host_that_was_never_reached(tmp_path: Path, others: dict[str, Any]) -> None:
    """No request of it is refused because nothing is known about its model yet. A client's own is; if no models are known
    at all, it may try again."""
    port, environ = free_port(), environment(tmp_path)
    pc = {"kind": "supervisor", "url": f"http://127.0.0.1:{port}"}
    front = write_config(tmp_path, gateway=gateway(tmp_path), backends={"pc": pc, **others})
    behind = write_config(
        tmp_path, "supervisor.yaml", profiles={"a": profile(tmp_path)},
        supervisor={**ENGINE, "listen": f"127.0.0.1:{port}", "token_file": None},
    )  # fmt: skip
    with run_hostler("gateway", "-c", front, errors=tmp_path / "gateway.log", environ=environ) as hostler:
        client = openai.OpenAI(base_url=f"{hostler.address}/v1", api_key="none", max_retries=5)
        batch_id = create(client, 3)
        assert until(client, batch_id, status="in_progress").request_counts.total == 3
        refused = httpx.post(f"{hostler.address}/v1/chat/completions", json=json.loads(line(0))["body"])
        if others:
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        else:
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_available")
            assert "have not reported theirs: pc" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) > 0 and refused.headers.get("x-should-retry") != "false"
        with run_hostler("supervisor", "-c", behind, errors=tmp_path / "supervisor.log", environ=environ):
            counts = until(client, batch_id, status="completed").request_counts
        client.close()
    assert (counts.total, counts.completed, counts.failed) == (3, 3, 0)
