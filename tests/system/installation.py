"""A configuration file with a scripted engine in a folder of its own, and `hostler` with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE


class Installation:
    """A configuration file, and `hostler` with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "hostler.yaml"
        model = folder / "m.gguf"
        model.write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
        self.document: dict[str, Any] = {
            "gateway": {"listen": ["127.0.0.1:0"]},
            "supervisor": {"listen": "127.0.0.1:0", "engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
            "profiles": {"a": {"model": str(model)}},
        }
        self.save()
        self.environ = {
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "HOSTLER_CACHE": str(folder / "cache"),
        }

    def save(self, text: str | None = None) -> None:
        self.path.write_text(json.dumps(self.document) if text is None else text)

    def run(self, command: str = "up", log: str = "log") -> AbstractContextManager[HostlerProcess]:
        return run_hostler(command, "--config", str(self.path), errors=self.folder / log, environ=self.environ)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hostler.gateway", *arguments, "--config", str(self.path)],
            capture_output=True, text=True, env={**os.environ, **self.environ}, timeout=60,
        )  # fmt: skip
