"""The product where Python has what it has on Windows: every module, the commands, and a model that answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from system.running_gateway import FAKE_ENGINE

pytestmark = pytest.mark.timeout(240)

SYSTEM = Path(__file__).parent.parent / "fakes" / "windows_system.py"


def environment(folder: Path) -> dict[str, str]:
    places = {name: str(folder / name.lower()) for name in ("APPDATA", "LOCALAPPDATA", "PROGRAMDATA")}
    unix = dict.fromkeys(("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HOSTLER_CACHE"), "")
    return {**os.environ, **unix, **places}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SYSTEM), *arguments], capture_output=True, text=True, env=environment(folder), cwd=folder
    )


def test_every_module_is_imported(tmp_path: Path) -> None:
    done = run(tmp_path)
    found = re.search(r"imported (\d+)", done.stdout)
    assert found is not None and int(found[1]) > 400, done.stderr


def test_commands_run_and_files_are_where_windows_has_them(tmp_path: Path) -> None:
    status = run(tmp_path, "status", "--url", "http://127.0.0.1:9")
    assert "no gateway answers at" in status.stderr and "Traceback" not in status.stderr
    assert run(tmp_path, "keys", "add", "anna").returncode == 0
    assert (tmp_path / "appdata" / "hostler" / "keys").read_text().count("\n") == 2
    assert "anna" in run(tmp_path, "keys", "list").stdout


def test_a_model_is_loaded_answers_and_ends_with_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not read by the scripted engine")
    log = tmp_path / "engine.log"
    script = json.dumps({"log": str(log)})
    (tmp_path / "hostler.yaml").write_text(
        json.dumps(
            {
                "gateway": {"listen": ["127.0.0.1:0"]},
                "supervisor": {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
                "profiles": {"m": {"model": str(tmp_path / "m.gguf"), "env": {"FAKE_ENGINE": script}}},
            }
        )
    )
    with (tmp_path / "err").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(SYSTEM), "up", "--plain"],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(tmp_path), cwd=tmp_path,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        address = next(
            (found[1] for line in process.stdout if (found := re.search(r"listens on (http://\S+)", line))), ""
        )
        assert address, (tmp_path / "err").read_text()
        with httpx.Client(trust_env=False, timeout=60) as http:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
            answer = http.post(f"{address}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text + (tmp_path / "err").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "err").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
    started = [json.loads(line) for line in log.read_text().splitlines()]
    pids = [event["pid"] for event in started if event["event"] == "start" and "pid" in event]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_the_check_of_other_systems_passes_here(tmp_path: Path) -> None:
    smoke = Path(__file__).parents[2] / ".ci" / "smoke.py"
    done = subprocess.run(
        [sys.executable, str(smoke), str(FAKE_ENGINE)], capture_output=True, text=True, env=environment(tmp_path),
        cwd=tmp_path,
    )  # fmt: skip
    assert re.search(r"\d{3} modules, the commands and a gateway work on", done.stdout), done.stderr
