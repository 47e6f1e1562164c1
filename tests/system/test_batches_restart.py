"""A batch over kills of the whole process: nothing is lost, and nothing is sent twice but what was in flight."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE, EngineLog

REQUESTS = 40


def write_config(folder: Path) -> str:
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    script = {"log": str(folder / "engines.log"), "chunks": 2, "chunk_delay": 0.01}
    document = {
        "gateway": {
            "listen": ["127.0.0.1:0"],
            "api_keys_file": None,
            "batches": {"file": str(folder / "batches.sqlite3"), "idle_s": 0, "concurrency": 2},
        },
        "supervisor": {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
        "profiles": {
            "a": {"model": str(model), "parallel": 2, "context": 8192, "env": {"FAKE_ENGINE": json.dumps(script)}}
        },
    }
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def environment(folder: Path) -> dict[str, str]:
    return {"HOSTLER_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}


def line(number: int) -> bytes:
    body = {"model": "a", "messages": [{"role": "user", "content": f"item {number} of the batch"}]}
    request = {"custom_id": f"item-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request).encode() + b"\n"


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
    config, environ, log = write_config(tmp_path), environment(tmp_path), EngineLog(tmp_path / "engines.log")
    batch_id, kills = "", 0
    for attempt in range(4):
        with run_hostler(
            "up", "--plain", "--config", config, errors=tmp_path / f"log{attempt}", environ=environ
        ) as hostler:
            client = openai.OpenAI(base_url=f"{hostler.address}/v1", api_key="none", max_retries=5)
            if not batch_id:
                content = b"".join(map(line, range(REQUESTS)))
                file = client.files.create(file=("input.jsonl", content), purpose="batch")
                batch_id = client.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                ).id
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
