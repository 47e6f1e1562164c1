"""GPUs on the page: what their driver reports, how that changes, and which builds of llama-server can use them."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.conftest import OpenPage
from playwright.async_api import expect
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

#: Two readings, as a file says, and one that is configured and does not exist.
TOOL = """#!/bin/sh
case "$1" in
--query-gpu=*) read -r used < {file}; echo "GPU-a, NVIDIA GeForce RTX 4090, 24576, $used, 12, 41, 33.81";;
esac
"""


async def test_readings_are_shown_and_follow_the_driver(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, tool = tmp_path / "used", tmp_path / "bin" / "nvidia-smi"
    used.write_text("9216\n")
    tool.parent.mkdir()
    tool.write_text(TOOL.format(file=used))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    devices = {"gpu0": {"budget": "22GiB"}, "gpu1": {"budget": "8GiB"}}
    async with (
        start_gateway({"a": {"memory": "3GiB"}}, supervisor={"devices": devices}) as gateway,
        open_page(f"{gateway.url}/ui/") as page,
    ):
        first, missing = page.locator(".devices > li").nth(0), page.locator(".devices > li").nth(1)
        for words in ("RTX 4090", "9.0 GiB of 24.0 GiB", "at most 15.0 GiB", "12 %", "41 °C", "34 W"):
            await expect(first).to_contain_text(words)
        await expect(missing).to_contain_text("gpu1")
        await expect(missing).to_contain_text("not found")
        used.write_text("12288\n")
        # An engine that gets ready is measured.
        assert (await gateway.chat("a")).status_code == 200
        await expect(first).to_contain_text("12.0 GiB of 24.0 GiB")


PROGRAM = """#!/bin/sh
case "$1" in
--help) printf -- '-m F\n-c N\n--host H\n--port P\n--version\n--list-devices\n' ;;
--version) echo "version: 6789 (abc123)" ;;
--list-devices) printf 'Available devices:\n  CUDA0: NVIDIA GeForce RTX 4090 (24217 MiB, 23000 MiB free)\n' ;;
esac
"""


async def test_the_builds_of_llama_servers_are_shown_with_their_devices(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path
) -> None:
    program = tmp_path / "llama-server"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    async with (
        start_gateway({"a": {"engine": str(program)}, "b": {}}) as gateway,
        open_page(f"{gateway.url}/ui/") as page,
    ):
        shown = page.locator(".programs > li")
        await expect(shown).to_have_count(1)
        for words in (str(program), "6789 (abc123)", "CUDA0: NVIDIA GeForce RTX 4090"):
            await expect(shown).to_contain_text(words)
