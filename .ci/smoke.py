"""Import everything, run commands, and have a scripted engine answer: for systems without the tests' tools.

`python smoke.py FAKE_ENGINE`, where Hostler is installed; FAKE_ENGINE is `tests/fakes/fake_engine.py`.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

HOSTLER = [sys.executable, "-m", "hostler.gateway"]


def import_everything() -> int:
    """Import each module of the product; returns how many there are."""
    import hostler

    names = [each.name for each in pkgutil.walk_packages(hostler.__path__, "hostler.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def run_commands(folder: Path) -> None:
    """Commands that need no gateway."""
    status = subprocess.run([*HOSTLER, "status", "--url", "http://127.0.0.1:9"], capture_output=True, text=True)
    assert "no gateway answers" in status.stderr, status.stderr
    listed = subprocess.run(
        [*HOSTLER, "keys", "list"], capture_output=True, text=True, env={**os.environ, "XDG_CONFIG_HOME": str(folder)}
    )
    assert listed.returncode == 0, listed.stderr


def serve(folder: Path, engine: str) -> None:
    """Start a gateway, ask a model, and stop it."""
    (folder / "m.gguf").write_bytes(b"not read by the scripted engine")
    configuration = {
        "gateway": {"listen": ["127.0.0.1:0"]},
        "engines": {"scripted": {"base": "llama-server", "command": [sys.executable, "-I", "-S", engine]}},
        "profiles": {"m": {"model": str(folder / "m.gguf"), "engine": "scripted", "env": {"FAKE_ENGINE": "{}"}}},
    }
    (folder / "hostler.yaml").write_text(json.dumps(configuration))
    process = subprocess.Popen(
        [*HOSTLER, "up", "--plain", "--config", str(folder / "hostler.yaml")], stdout=subprocess.PIPE, text=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0), env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        found = (re.search(r"listens on (http://\S+)", line) for line in process.stdout)
        address = next(each[1] for each in found if each is not None)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}).encode()
        request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"]
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    count = import_everything()
    with tempfile.TemporaryDirectory() as folder:
        run_commands(Path(folder))
        serve(Path(folder), str(Path(sys.argv[1]).resolve()))
    print(f"{count} modules, the commands and a gateway work on {sys.platform}")  # noqa: T201


if __name__ == "__main__":
    main()
