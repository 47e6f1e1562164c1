"""Takes the pictures of the README from the running product: `nox -s pictures`.

Gateway, supervisor and page are real; engines and the cloud are the scripted ones of the tests, which take as much time on a
busy machine as on an idle one. Needs Chromium, and the group `pictures` of pyproject.toml.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from PIL import Image
from playwright.async_api import Locator, Page, async_playwright
from playwright.async_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "docs" / "pictures"
sys.path.insert(0, str(ROOT / "tests"))

from fakes.fake_openrouter import start_openrouter  # noqa: E402
from fakes.flag_file import FlagFile  # noqa: E402
from system.running_gateway import RunningGateway, gateway_starter, write_keys  # noqa: E402

CLIENTS = {"alice": 0, "open-webui": 0, "home-assistant": 5, "claude-code": 0}
WINDOW: dict[str, Any] = {
    "viewport": {"width": 1120, "height": 760},
    "device_scale_factor": 1.25,
    "reduced_motion": "reduce",
    "color_scheme": "light",
    "locale": "en-GB",
    "timezone_id": "UTC",
}
#: The file without which the agent's model does not get ready: a busy machine takes its picture late.
READY = "ready"
#: As long as what an agent sends with each question.
LONG_PROMPT = "Here is a list of what every room of the inn has. " * 150


def profiles(folder: Path) -> dict[str, dict[str, Any]]:
    """Small models, whose engines really take as much memory as the page shows."""
    file = folder / "model.gguf"
    return {
        "qwen3-1.7b": profile(file, "everyday chat", load_s=2.4, memory_mib=1240, parallel=2, default=True),
        "qwen3-4b-agent": profile(
            file, "for coding agents", load_s=6.0, memory_mib=1530, context=65536, ready_when=str(folder / READY)
        ),
        "gemma-3-1b": profile(file, "quick answers", load_s=1.6, memory_mib=790),
        "nomic-embed": profile(file, "vectors for searches", load_s=0.4, memory_mib=140, embeddings=True, pinned=True),
    }


def profile(
    file: Path, description: str, *, load_s: float, memory_mib: int, ready_when: str | None = None, **more: Any
) -> dict[str, Any]:
    script = {
        "ready_after": load_s, "ready_when": ready_when, "memory_mib": memory_mib,
        "first_delay": 0.7, "chunks": 70, "chunk_delay": 0.05,
    }  # fmt: skip
    memory = (memory_mib + 12) << 20
    return {
        "model": str(file),
        "description": description,
        "context": 16384,
        "memory": memory,
        "script": script,
        **more,
    }


@asynccontextmanager
async def product(folder: Path) -> AsyncIterator[tuple[RunningGateway, dict[str, str]]]:
    """A gateway with an engine and a cloud behind it, and the keys of its clients."""
    key_file, keys = write_keys(folder, **CLIENTS)
    async with start_openrouter("cloud") as cloud:
        start = gateway_starter(folder)(
            profiles(folder),
            gateway={"api_keys_file": key_file, "switching": {"patience_s": 1.0}},
            supervisor={"slots_max": 0},
            backends={
                "openrouter": {
                    "kind": "openai",
                    "url": cloud.url,
                    "local": False,
                    "models": {"qwen3-32b": "qwen/qwen3-32b"},
                }
            },
        )
        async with start as gateway:
            yield gateway, keys


def counts(gateway: RunningGateway) -> tuple[int, int]:
    """The requests that are served and that wait."""
    (host,) = gateway.app.status().hosts
    return host.serving, host.waiting


async def save(place: Page | Locator, name: str) -> None:
    """A picture of the window or of a part of the page, in few colours: it is text and lines."""
    shot = Image.open(io.BytesIO(await place.screenshot())).convert("RGB")
    shot.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)


async def take(gateway: RunningGateway, keys: dict[str, str], page: Page, ready: FlagFile) -> None:
    """Ask for several models, and take each picture when the page shows what it is about."""
    ready.set()

    async def ask(client: str, model: str, prompt: str = "Name three animals at an inn.") -> None:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Authorization": f"Bearer {keys[client]}"}
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            answer.raise_for_status()
            await answer.aread()

    for model in ("qwen3-4b-agent", "gemma-3-1b", "qwen3-1.7b", "qwen3-32b"):
        await ask("alice", model)
    ready.clear()
    await page.goto(f"{gateway.url}/ui/#now")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "open-webui", "qwen3-1.7b")
        tasks.start_soon(ask, "home-assistant", "qwen3-1.7b")
        await gateway.until(lambda: counts(gateway) == (2, 0))
        tasks.start_soon(ask, "claude-code", "qwen3-4b-agent", LONG_PROMPT)
        await gateway.until(lambda: counts(gateway) == (2, 1))
        await page.get_by_role("button", name="Forecast loading gemma-3-1b").click()
        await page.get_by_role("dialog").get_by_role("listitem").first.wait_for()
        await page.evaluate("scrollTo(0, 0)")
        await save(page, "forecast.png")
        await page.get_by_role("button", name="Cancel").click()
        try:
            await page.get_by_text(re.compile(r"loading, [2-9]\d %")).wait_for(timeout=20_000)
        except PlaywrightTimeout:
            await page.get_by_text("loading").first.wait_for()
        await save(page, "now.png")
        ready.set()
    await ask("alice", "gemma-3-1b")
    await page.goto(f"{gateway.url}/ui/#flow")
    past = page.get_by_role("list", name="Recent requests")
    await past.locator("summary").filter(has_text="claude-code").first.click()
    await page.mouse.move(0, 0)
    await save(page.locator(".card").filter(has=past), "waterfall.png")


async def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        async with product(Path(name)) as (gateway, keys), async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            headers = {"Authorization": f"Bearer {keys['alice']}"}
            page = await (await browser.new_context(**WINDOW, extra_http_headers=headers)).new_page()
            page.set_default_timeout(120_000)
            await take(gateway, keys, page, FlagFile(Path(name) / READY))
            await browser.close()


if __name__ == "__main__":
    anyio.run(main)
