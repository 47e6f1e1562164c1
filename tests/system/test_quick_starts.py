"""The quick starts, followed to the letter on loopback: their files as they are printed, but for addresses and folders."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from anyio import to_thread
from fakes.downloads import wait_until
from fakes.fake_openrouter import FakeOpenRouter
from system.hostler_process import HostlerProcess, run_hostler

from bench.random_models import write_model

pytestmark = pytest.mark.engine

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with one model, a small one under the name that the pages use."""
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder / "Qwen3-8B.gguf", "llama")
    return folder


@pytest.fixture(autouse=True)
def new_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, keys or state from before. The cache stays, so that nothing is fetched twice."""
    for name in ("HOSTLER_CONFIG", "HOSTLER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def file_of(page: str, first_line: str, changes: Mapping[str, str]) -> str:
    """The block of a page that begins with a line, with texts replaced that belong to the reader's network."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"^```yaml\n({re.escape(first_line)}\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    block = found[1]
    for old, new in changes.items():
        assert old in block, old
        block = block.replace(old, new)
    return block


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def hostler(*arguments: str) -> str:
    """What a command prints; it has to succeed."""
    command = [sys.executable, "-m", "hostler.gateway", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def key_in(printed: str) -> str:
    found = re.search(r"hst-\S+", printed)
    assert found is not None, printed
    return found[0]


def ask(process: HostlerProcess, key: str, model: str = "qwen3-8b", **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello!"}]}
    return httpx.post(f"{process.address}/v1/chat/completions", json=body, headers=headers, timeout=120)


def is_ready(process: HostlerProcess, key: str) -> bool:
    return httpx.get(f"{process.address}/readyz", headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.anyio
async def test_a_pc_an_always_on_box_and_a_cloud(
    models: Path, tmp_path: Path, cloud: FakeOpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTLER_SUPERVISOR_TOKEN", "a-token-of-both")
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-test")
    await to_thread.run_sync(follow_home_lab, models, tmp_path, cloud.url)
    assert [request.json["model"] for request in cloud.requests if request.body] == ["qwen/qwen3-8b"]


def follow_home_lab(models: Path, tmp_path: Path, cloud_url: str) -> None:
    page = "quick-start-home-lab.md"
    on_pc = {"0.0.0.0:8080": "127.0.0.1:0", "192.168.1.10": "127.0.0.1", "engine_ports: 8100-8199": ""}
    pc_file = file_of(page, "# hostler.yaml on the PC", {**on_pc, "~/models": str(models)})
    small_file = file_of(page, "# small.yaml on the box", {"127.0.0.1:8090": "127.0.0.1:0"})
    with (
        run_hostler("supervisor", "-c", write(tmp_path / "pc/hostler.yaml", pc_file), errors=tmp_path / "pc.log") as pc,
        run_hostler("up", "-c", write(tmp_path / "box/small.yaml", small_file), errors=tmp_path / "small.log") as small,
    ):
        on_box = {
            "0.0.0.0:8000": "127.0.0.1:0",
            "http://192.168.1.10:8080": f"http://{pc.address}",
            "https://openrouter.ai/api/v1": cloud_url,
            "http://127.0.0.1:8090": small.address,
            "models: {qwen3-8b": "local: false\n    models: {qwen3-8b",  # loopback is local otherwise
        }
        box_file = write(tmp_path / "box/hostler.yaml", file_of(page, "# hostler.yaml on the box", on_box))
        key = key_in(hostler("keys", "add", "laptop", "-c", box_file))
        with run_hostler("gateway", "-c", box_file, errors=tmp_path / "box.log") as box:
            wait_until(lambda: is_ready(box, key))
            assert ask(box, key).headers["x-hostler-backend"] == "pc"
            assert pc.stop() == 0
            assert ask(box, key).headers["x-hostler-backend"] == "cloud"
            at_home = ask(box, key, X_Hostler_Local_Only="true")
            assert (at_home.status_code, at_home.headers["x-hostler-backend"]) == (200, "small")
            assert ask(box, "hst-wrong").status_code == 401


def test_a_team_with_keys(models: Path, tmp_path: Path) -> None:
    text = file_of("quick-start-team.md", "# hostler.yaml", {"0.0.0.0:8000": "127.0.0.1:0", "/srv/models": str(models)})
    file = write(tmp_path / "team/hostler.yaml", text)
    alice = key_in(hostler("keys", "add", "alice", "-c", file))
    bob = key_in(hostler("keys", "add", "bob", "--note", "data team", "-c", file))
    admin = key_in(
        hostler("keys", "add", "admin", *("--scope", "infer", "--scope", "read", "--scope", "operate"), "-c", file)
    )
    with run_hostler("up", "-c", file, errors=tmp_path / "log") as gateway:
        assert ask(gateway, alice).status_code == 200
        hostler("keys", "set", "bob", "--model", "llama*", "-c", file)
        wait_until(lambda: ask(gateway, bob).status_code != 200)
        assert ask(gateway, alice).status_code == 200
        headers = {"Authorization": f"Bearer {admin}"}
        unload = f"{gateway.address}/admin/unload"
        assert httpx.post(unload, json={"model": "qwen3-8b"}, headers=headers, timeout=60).status_code == 200
        refused = httpx.post(unload, json={"model": "qwen3-8b"}, headers={"Authorization": f"Bearer {alice}"})
        assert refused.status_code == 403
        hostler("keys", "revoke", "bob", "-c", file)
        wait_until(lambda: ask(gateway, bob).status_code == 401)
    listed = hostler("keys", "list", "-c", file)
    assert "alice" in listed and "admin" in listed and "bob" not in listed
