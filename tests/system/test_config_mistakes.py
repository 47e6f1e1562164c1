"""A configuration with mistakes: it is reported everywhere, and what worked before goes on, over restarts as well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from system.hostler_process import HostlerProcess
from system.installation import Installation


def until(condition: Callable[[], object]) -> None:
    """Wait for another process."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def get(running: HostlerProcess, path: str) -> Any:
    return httpx.get(f"{running.address}{path}", timeout=20, trust_env=False).json()


def chat(running: HostlerProcess, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    return httpx.post(f"{running.address}/v1/chat/completions", json=body, timeout=30, trust_env=False)


BROKEN = "profiles:\n  a: {modell: x}\n"


def test_a_saved_mistake_does_not_keep_the_gateway_from_starting_again(installed: Installation) -> None:
    with installed.run() as running:
        installed.save(BROKEN)
        until(lambda: "degraded" in get(running, "/readyz"))
        assert chat(running, "a").status_code == 200
    with installed.run(log="again") as running:
        assert "hostler.yaml:2" in running.log
        assert "running with its last good state until it is corrected" in running.log
        assert chat(running, "a").status_code == 200
        assert get(running, "/readyz")["degraded"] == ["configuration"]
        assert "did you mean model?" in get(running, "/admin/status")["config_errors"]["mistakes"][0]
        shown = installed.call("status", "--url", running.address)
        assert shown.returncode == 0, shown.stderr
        assert "The configuration has mistakes" in shown.stdout
        assert "hostler.yaml:2: profiles.a.modell" in " ".join(shown.stdout.split())
        installed.document["profiles"]["b"] = {"base": "a"}
        installed.save()
        until(lambda: "degraded" not in get(running, "/readyz"))
        assert get(running, "/admin/status")["config_errors"] is None
        assert chat(running, "b").status_code == 200
        assert "its mistakes are corrected" in running.log


def test_what_could_not_be_started_is_a_mistake_as_well(installed: Installation) -> None:
    with installed.run() as running:
        installed.document["gateway"]["listen"] = ["0.0.0.0:0"]
        installed.save()
        until(lambda: "degraded" in get(running, "/readyz"))
    with installed.run(log="again") as running:
        assert "refusing to listen on 0.0.0.0:0 without API keys" in running.log
        assert running.address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("command", ["gateway", "supervisor"])
def test_each_program_starts_with_its_last_good_configuration(installed: Installation, command: str) -> None:
    installed.document["backends"] = {"b": {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"m": "m"}}}
    if command == "gateway":
        del installed.document["profiles"]
    installed.save()
    kept = installed.path.with_name("hostler.last-good.json")
    with installed.run(command):
        until(kept.exists)
    installed.save("backends: [")
    with installed.run(command, log="again") as running:
        assert "running with its last good state" in running.log


def test_a_first_start_with_mistakes_names_all_of_them(installed: Installation) -> None:
    installed.save("gateway:\n  lissten: x\n  drain_s: soon\nprofiles:\n  a: {base: none}\n")
    for command in ("up", "check"):
        done = installed.call(command)
        assert done.returncode == 2
        assert [line.split(": ")[2] for line in done.stderr.splitlines()] == [
            "gateway.lissten", "gateway.drain_s", "profiles.a.base",
        ]  # fmt: skip
    found = json.loads(installed.call("check", "--json").stdout)
    assert (found["valid"], len(found["errors"])) == (False, 3)


def test_a_missing_or_damaged_file_disables_its_profile_only(installed: Installation) -> None:
    late, damaged = installed.folder / "late.gguf", installed.folder / "damaged.gguf"
    damaged.write_bytes(bytes(range(256)) * 40)
    cut = installed.folder / "cut.gguf"
    cut.write_bytes(GgufWriter().bytes(LLAMA, TENSORS)[:-100])
    installed.document["profiles"] |= {
        "late": {"model": str(late)},
        "damaged": {"model": str(damaged), "engine": "embedded"},
        "cut": {"model": str(cut)},
        "odd": {"base": "a", "engine": "no-such-engine"},
    }
    installed.save()
    checked = installed.call("check")
    assert checked.returncode == 2
    assert [line.split(": ")[1] for line in checked.stderr.splitlines()] == [
        "profiles.odd.engine", "profiles.late.model", "profiles.damaged.model", "profiles.cut.model",
    ]  # fmt: skip
    with installed.run() as running:
        assert chat(running, "a").status_code == 200

        def states() -> dict[str, tuple[str, str]]:
            models = get(running, "/admin/status")["hosts"][0]["host"]["models"]
            return {each["model"]: (each["state"], (each["failure"] or {}).get("kind", "")) for each in models}

        pid = [each["pid"] for each in get(running, "/admin/status")["hosts"][0]["host"]["models"] if each["pid"]]
        until(lambda: states()["late"] == ("failed", "file_missing"))
        assert states()["damaged"] == ("failed", "not_gguf")
        assert "late: disabled" in running.log and "damaged: disabled" in running.log
        assert states()["odd"] == ("failed", "engine_missing")
        for name, reason in (
            ("late", "its file is missing"),
            ("damaged", "its file is not a GGUF model"),
            ("cut", "its file is damaged or incomplete"),
            ("odd", "the engine program is not installed"),
        ):
            refused = chat(running, name)
            assert refused.status_code == 503
            assert reason in refused.text
        # The model that works was not stopped for them.
        after = [each["pid"] for each in get(running, "/admin/status")["hosts"][0]["host"]["models"] if each["pid"]]
        assert after == pid
        late.write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
        until(lambda: states()["late"] == ("stopped", ""))
        until(lambda: chat(running, "late").status_code == 200)
