"""The dashboard of a gateway that records prompts and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.conftest import OpenPage
from browser.sections import SECTIONS, open_section
from browser.test_sections import complaints
from playwright.async_api import expect
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio


async def test_recording_is_shown_in_every_section_and_operators_read_transcripts(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path
) -> None:
    recording = {"contents": True, "file": str(tmp_path / "contents.sqlite3")}
    async with start_gateway({"a": {}}, gateway={"recording": recording}) as gateway:
        await gateway.chat("a", messages=[{"role": "user", "content": "<b>Quietly</b>"}])
        async with open_page(f"{gateway.url}/ui/") as page:
            for section in SECTIONS:
                await open_section(page, section)
                await expect(page.get_by_role("note")).to_contain_text("prompts and answers are recorded")
            await page.get_by_role("link", name="Try it").click()
            await expect(page.locator("main")).to_contain_text("the gateway records it")
            await page.get_by_role("link", name="Flow").click()
            await page.get_by_role("list", name="Recent requests").locator("summary").click()
            await page.get_by_role("button", name="Show prompt and answer").click()
            await expect(page.get_by_label("request", exact=True)).to_contain_text("<b>Quietly</b>")
            await expect(page.get_by_label("answer", exact=True)).to_contain_text("word0")
            assert await complaints(page) == []


async def test_no_recording_is_shown_by_default(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway:
        await gateway.chat("a")
        async with open_page(f"{gateway.url}/ui/#flow") as page:
            await page.get_by_role("list", name="Recent requests").locator("summary").click()
            await expect(page.get_by_text("Operation")).to_be_visible()
            await expect(page.get_by_role("note")).to_have_count(0)
            await expect(page.get_by_role("button", name="Show prompt and answer")).to_be_hidden()
