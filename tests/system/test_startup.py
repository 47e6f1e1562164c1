"""What a process loads until it listens, without a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.ports import free_port
from system.hostler_process import run_hostler

PLAIN = {"lan": {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"*": "m"}}}
FILES: dict[str, dict[str, Any]] = {
    "gateway": {"gateway": {"listen": ["127.0.0.1:0"]}, "backends": PLAIN},
    "up": {"gateway": {"listen": ["127.0.0.1:0"]}, "profiles": {"a": {"model": "/no.gguf"}}},
    "supervisor": {"supervisor": {"listen": "127.0.0.1:0"}, "profiles": {"a": {"model": "/no.gguf"}}},
}

#: What only other commands need, or backends that these files do not name.
NEVER = {"typer", "pydantic", "rich", "pygments", "httpx", "httpcore", "h11", "xllamacpp", "opentelemetry"}

#: What is needed later, if ever: a gateway alone may have no supervisors and be asked for no metrics and events. A
#: supervisor alone has nothing of a gateway.
LATER = {
    "gateway": {"prometheus_client", "sse_starlette", "psutil", "hostler.supervisor.manager"},
    "supervisor": {"prometheus_client", "sqlite3", "hostler.gateway.app"},
    "up": {"prometheus_client"},
}


def configured(command: str, folder: Path) -> tuple[Path, dict[str, str]]:
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(FILES[command]))
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOSTLER_CACHE")
    return path, {name: str(folder / name.lower()) for name in names}


@pytest.mark.parametrize("command", FILES)
def test_a_service_loads_only_what_it_needs(command: str, tmp_path: Path) -> None:
    path, environ = configured(command, tmp_path)
    environ["PYTHONPROFILEIMPORTTIME"] = "1"
    environ.update({name: "" for name in os.environ if name.startswith("COVERAGE_")})  # it imports sqlite3
    with run_hostler(
        command, "-c", str(path), "--log-level", "info", errors=tmp_path / "log", environ=environ
    ) as running:
        running.stop()
        loaded = set(re.findall(r"^import time:.*\| +(\S+)$", running.log, re.MULTILINE))
    assert "hostler.gateway.server.server" in loaded
    assert loaded & (NEVER | LATER[command]) == set()


@pytest.mark.parametrize(
    "wrong",
    [["-c", "nope.yaml"], ["-c", "hostler.yaml"]],
    ids=["no file", "cannot run"],
)
def test_errors_are_the_same_with_and_without_typer(wrong: list[str], tmp_path: Path) -> None:
    """A repeated option is left to typer."""
    listening = {"gateway": {"listen": [f"127.0.0.1:{free_port()}"]}}
    (tmp_path / "hostler.yaml").write_text(json.dumps(listening))
    done = [
        subprocess.run(
            [sys.executable, "-m", "hostler.gateway", "gateway", *wrong, *more],
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        for more in ([], ["--plain", "--plain"])
    ]  # fmt: skip
    assert done[0].returncode == 2
    assert done[0].stderr.startswith("hostler: ")
    assert len({(each.returncode, each.stdout, each.stderr) for each in done}) == 1
