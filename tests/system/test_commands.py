"""Commands that ask a running gateway, when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.ports import free_port


def ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "hostler.yaml"
    path.write_text(
        json.dumps({"gateway": {"listen": [f"127.0.0.1:{free_port()}"]}, "profiles": {"a": {"model": "/no.gguf"}}})
    )
    return subprocess.run(
        [sys.executable, "-m", "hostler.gateway", *arguments, "--config", str(path)],
        env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "command", [("models",), ("models", "--json"), ("status",), ("route", "a", "--dry-run"), ("doctor",)], ids=" ".join
)
@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://[nonsense"])
def test_who_names_a_gateway_that_does_not_answer_is_told_so(
    tmp_path: Path, command: tuple[str, ...], url: str
) -> None:
    where = url.replace("{port}", str(free_port()))
    done = ask(tmp_path, *command, "--url", where)
    assert done.returncode == 3, done.stderr
    assert where in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_models_are_listed_without_a_gateway_if_none_is_named(tmp_path: Path) -> None:
    done = ask(tmp_path, "models")
    assert done.returncode == 0
    assert "a" in done.stdout
