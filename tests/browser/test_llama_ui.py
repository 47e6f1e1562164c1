"""llama.cpp's own web UI, as llama-server carries it, at the gateway's address.

Its files are not ours: `HOSTLER_TEST_LLAMA_UI` names the folder they were built into.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, Route, expect
from system.running_gateway import RunningGateway, StartGateway

FOLDER = os.environ.get("HOSTLER_TEST_LLAMA_UI")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(90),
    pytest.mark.skipif(FOLDER is None, reason="HOSTLER_TEST_LLAMA_UI names no folder with the built web UI"),
]


@asynccontextmanager
async def web_ui(browser: Browser, gateway: RunningGateway) -> AsyncIterator[Page]:
    """The web UI in a window of its own: its files from the folder, everything else from the gateway."""
    context = await browser.new_context(service_workers="block", viewport={"width": 1280, "height": 900})

    async def answer(route: Route) -> None:
        path = urlsplit(route.request.url).path.lstrip("/") or "index.html"
        file = Path(FOLDER or "") / path
        if route.request.method == "GET" and file.is_file():
            await route.fulfill(path=file, content_type=mimetypes.guess_type(path)[0] or "application/octet-stream")
        else:
            await route.continue_()

    try:
        await context.route("**/*", answer)
        page = await context.new_page()
        page.set_default_timeout(20_000)
        await page.goto(f"{gateway.url}/")
        yield page
    finally:
        await context.close()


async def say(page: Page, text: str) -> None:
    """Type and send, by keyboard."""
    await page.locator("textarea, [contenteditable=true]").first.click()
    await page.keyboard.type(text)
    await page.keyboard.press("Enter")


async def test_the_web_ui_chats_and_switches_models(start_gateway: StartGateway, browser: Browser) -> None:
    profiles = {"a": {"default": True, "aliases": ["alpha"]}, "org/b": {"script": {"text": "other{}"}}}
    async with start_gateway(profiles) as gateway, web_ui(browser, gateway) as page:
        await say(page, "Hello")
        await expect(page.get_by_text("word0 word1 word2 word3 word4")).to_be_visible()
        assert gateway.starts() == ["a"]
        await page.get_by_role("button", name=re.compile("^(a|alpha)$")).last.click()
        await expect(page.get_by_text("Loaded models")).to_be_visible()
        await page.get_by_role("option", name=re.compile("b")).last.click()
        await expect(page.get_by_text("Model loaded: b")).to_be_visible()
        assert gateway.starts() == ["a", "org/b"]
        await say(page, "And you?")
        await expect(page.get_by_text("other0 other1 other2 other3 other4")).to_be_visible()


async def test_the_web_ui_stops_an_answer(start_gateway: StartGateway, browser: Browser) -> None:
    profiles = {"a": {"default": True, "script": {"chunks": 50_000, "chunk_delay": 0.05}}}
    async with start_gateway(profiles) as gateway, web_ui(browser, gateway) as page:
        await say(page, "Hello")
        await expect(page.get_by_text("word0 word1")).to_be_visible()
        await page.get_by_role("button", name="Stop generation").last.click()
        await gateway.until(lambda: gateway.events("gone"))
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
