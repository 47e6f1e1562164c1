"""The end of a program while it waits for a name server that does not answer."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
SILENT_NAMES = {"PYTHONPATH": str(Path(__file__).parents[1] / "fakes" / "silent_names")}


def configuration_with_names(folder: Path, command: str) -> Path:
    """Backends, a collector and a store, or models to download, of hosts whose names nothing resolves."""
    document: dict[str, Any] = {
        "gateway": {"listen": ["127.0.0.1:0"], "drain_s": 0.5},
        "supervisor": {"listen": "127.0.0.1:0", "engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
    }
    if command == "gateway":
        models = {"models": {"m": "m"}}
        document["gateway"]["tracing"] = {"endpoint": "http://collector.example:4318"}
        document["cluster"] = {"store": "redis://store.example", "token": "between-gateways"}
        document["backends"] = {
            "cloud": {"kind": "openai", "url": "http://cloud.example", "local": False, **models},
            "lan": {"kind": "llamacpp", "url": "http://lan.example", "local": True, **models},
            "pc": {"kind": "supervisor", "url": "http://pc.example:8080", "token": "t"},
        }
    else:
        document["profiles"] = {"m": {"model": "hf:some/where/m.gguf"}}
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("command", ["up", "gateway", "supervisor"])
def test_a_silent_name_server_does_not_delay_the_end(tmp_path: Path, command: str) -> None:
    path = configuration_with_names(tmp_path, command)
    environ = {**SILENT_NAMES, "HOSTLER_CACHE": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path)}
    with run_hostler(command, "--config", str(path), errors=tmp_path / "log", environ=environ) as running:
        url = running.address if command != "supervisor" else f"http://{running.address}"
        route, body = ("/v1/chat/completions", CHAT) if command != "supervisor" else ("/models/switch", {"model": "m"})

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(f"{url}{route}", json=body, timeout=60, trust_env=False)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(1)  # the lookup has begun; it reports nothing
        # Lookups take a minute; other parts of the end have limits of their own.
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
        asking.join()
