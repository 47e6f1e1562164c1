"""Several clients pull the same file from a hub that sends the second half on command."""

from __future__ import annotations

import http.server
import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE

CONTENT = bytes(range(256)) * 4096 * 4  # more than one block


class Hub:
    """Serves one file, half of it at once."""

    def __init__(self) -> None:
        self.requests = 0
        self.status = 200
        self.go_on = threading.Event()
        self.disconnected = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests += 1
                if hub.status != 200:
                    self.send_error(hub.status)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                half = len(CONTENT) // 2
                self.wfile.write(CONTENT[:half])
                self.wfile.flush()
                while not hub.go_on.is_set():
                    if select.select([self.connection], [], [], 0.01)[0] and not self.connection.recv(1):
                        hub.disconnected.set()
                        return
                self.wfile.write(CONTENT[half:])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.go_on.set()
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


@pytest.fixture
def workers() -> int:
    """The number of the gateway's worker processes."""
    return 1


@pytest.fixture
def running(tmp_path: Path, hub: Hub, workers: int) -> Iterator[HostlerProcess]:
    document = {
        "gateway": {"listen": ["127.0.0.1:0"], "workers": workers},
        "supervisor": {"engine": f"python3 -I -S {FAKE_ENGINE}"},
        "profiles": {
            "far": {"model": "hf:org/repo/far.gguf", "context": 2048},
            "long": {"base": "far", "context": 4096},
        },
    }
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps(document))
    environ = {
        "HOSTLER_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "", "HTTP_PROXY": "", "http_proxy": "",
    }  # fmt: skip
    with run_hostler("up", "--config", str(path), errors=tmp_path / "log", environ=environ) as running:
        yield running


def until_it_moves(lines: Iterator[str]) -> None:
    """Wait for the first line with completed and total bytes."""
    for line in lines:
        step = json.loads(line)
        if step.get("completed"):
            assert step["total"] == len(CONTENT) and step["completed"] < step["total"]
            assert step["status"] == f"pulling {step['digest'][7:19]}"
            return
    raise AssertionError("nothing came")


def test_pulls_of_one_file_share_a_download_and_are_cancelled_independently(
    running: HostlerProcess, hub: Hub, tmp_path: Path
) -> None:
    url = f"{running.address}/api/pull"
    with httpx.Client(timeout=20) as http, http.stream("POST", url, json={"model": "long"}) as second:
        with http.stream("POST", url, json={"model": "far"}) as first:
            until_it_moves(first.iter_lines())
            lines = second.iter_lines()
            until_it_moves(lines)
        hub.go_on.set()
        rest = [json.loads(line) for line in lines]
    assert rest[-1] == {"status": "success"} and hub.requests == 1
    assert all("error" not in line for line in rest)
    (file,) = (tmp_path / "cache").rglob("far.gguf")
    assert file.read_bytes() == CONTENT


def test_a_request_for_the_model_joins_the_pull(running: HostlerProcess, hub: Hub) -> None:
    with (
        httpx.Client(timeout=20) as http,
        http.stream("POST", f"{running.address}/api/pull", json={"model": "far"}) as pull,
    ):
        lines = pull.iter_lines()
        until_it_moves(lines)
        body = {"model": "far", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        with http.stream("POST", f"{running.address}/v1/chat/completions", json=body) as chat:
            assert chat.status_code == 200  # it is shown that it waits
            hub.go_on.set()
            assert "[DONE]" in "".join(chat.iter_lines())
        assert json.loads(list(lines)[-1]) == {"status": "success"}
    assert hub.requests == 1


def test_the_download_is_cancelled_when_all_clients_disconnect(
    running: HostlerProcess, hub: Hub, tmp_path: Path
) -> None:
    with (
        httpx.Client(timeout=20) as http,
        http.stream("POST", f"{running.address}/api/pull", json={"model": "far"}) as pull,
    ):
        until_it_moves(pull.iter_lines())
    assert hub.disconnected.wait(20)
    hub.go_on.set()
    assert not list((tmp_path / "cache").rglob("far.gguf"))
    again = httpx.post(f"{running.address}/api/pull", json={"model": "far", "stream": False}, timeout=20)
    assert again.json() == {"status": "success"} and hub.requests == 2


def until_download(http: httpx.Client, url: str, status: str) -> dict[str, object]:
    """Ask until the download has this status; there is nothing to wait for but the answer."""
    for _ in range(2000):
        found: dict[str, object] = http.get(url).json()
        if found["status"] == status:
            return found
        time.sleep(0.005)
    raise AssertionError(found)


def test_a_download_for_lm_studios_clients_goes_on_without_them(
    running: HostlerProcess, hub: Hub, tmp_path: Path
) -> None:
    url = f"{running.address}/api/v1/models/download"
    with httpx.Client(timeout=20) as http:
        started = http.post(url, json={"model": "far"}).json()
        assert started["status"] == "downloading"
        assert started["total_size_bytes"] == len(CONTENT)
        assert http.post(url, json={"model": "FAR"}).json()["job_id"] == started["job_id"]
        status = f"{url}/status/{started['job_id']}"
        now = http.get(status).json()
        assert 0 < now["downloaded_bytes"] < len(CONTENT)
        assert now["bytes_per_second"] > 0 and now["estimated_completion"] > now["started_at"]
        assert [each["job_id"] for each in http.get(f"{url}/status").json()["downloading"]] == [started["job_id"]]
    assert not hub.disconnected.is_set()
    hub.go_on.set()
    with httpx.Client(timeout=20) as http:
        ended = until_download(http, status, "completed")
        assert ended["downloaded_bytes"] == ended["total_size_bytes"] == len(CONTENT)
        assert str(ended["completed_at"]) >= str(ended["started_at"])
        assert until_download(http, status, "completed") == ended
        again = http.post(url, json={"model": "far"}).json()
        assert again == {"status": "already_downloaded"}
        chosen = http.post(url, json={"model": "far", "quantization": "Q4_K_M"})
        assert (chosen.status_code, "quantization" in chosen.text) == (400, True)
        unknown = http.get(f"{url}/status/job_0")
        assert (unknown.status_code, "job_0" in unknown.text) == (404, True)
    (file,) = (tmp_path / "cache").rglob("far.gguf")
    assert file.read_bytes() == CONTENT
    assert hub.requests == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [2])
def test_every_worker_knows_the_downloads_of_all(running: HostlerProcess, hub: Hub) -> None:
    url = f"{running.address}/api/v1/models/download"

    def on_new_connections(ask: Callable[[httpx.Client], dict[str, Any]]) -> list[dict[str, Any]]:
        answers = []
        for _ in range(6):
            with httpx.Client(timeout=20, trust_env=False) as http:
                answers.append(ask(http))
        return answers

    started = on_new_connections(lambda http: http.post(url, json={"model": "far"}).json())
    (job,) = {each["job_id"] for each in started}
    found = on_new_connections(lambda http: http.get(f"{url}/status/{job}").json())
    assert [each["status"] for each in found] == ["downloading"] * 6
    assert hub.requests == 1
    hub.go_on.set()
    with httpx.Client(timeout=20, trust_env=False) as http:
        until_download(http, f"{url}/status/{job}", "completed")
    listed = on_new_connections(lambda http: http.get(f"{url}/status").json())
    assert all([each["job_id"] for each in lists["completed"]] == [job] for lists in listed)


def test_a_download_that_fails_says_so(running: HostlerProcess, hub: Hub) -> None:
    hub.go_on.set()
    hub.status = 404
    url = f"{running.address}/api/v1/models/download"
    with httpx.Client(timeout=20) as http:
        started = http.post(url, json={"model": "far"}).json()
        failed = until_download(http, f"{url}/status/{started['job_id']}", "failed")
        assert "could not be fetched" in str(failed["error"])
        assert http.get(f"{url}/status").json()["failed"] == [failed]
        hub.status = 200
        again = http.post(url, json={"model": "far"}).json()
        assert until_download(http, f"{url}/status/{again['job_id']}", "completed")["job_id"] != started["job_id"]
