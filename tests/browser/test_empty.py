"""The dashboard without backends or models says what to configure."""

from __future__ import annotations

import pytest
from browser.conftest import OpenPage
from playwright.async_api import expect
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio


async def test_without_backends_the_page_says_what_to_configure(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    async with start_gateway({}) as gateway, open_page(f"{gateway.url}/ui/") as page:
        await expect(page.locator("main")).to_contain_text("No backend is configured")
        await expect(page.get_by_text("Other backends are listed under Chain")).to_be_hidden()
        await page.get_by_role("link", name="Try it").click()
        await page.get_by_label("Message").fill("Hello")
        await page.keyboard.press("Enter")
        await expect(page.locator("form [role=status]")).to_contain_text("No models are available")


async def test_a_host_without_models_says_how_to_add_one(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/") as page:
        await expect(page.locator(".models")).to_contain_text("not loaded")
        await expect(page.get_by_text("No models yet")).to_be_hidden()
        await gateway.manager.replace_profiles([])
        await expect(page.get_by_text("No models yet")).to_be_visible()
        await expect(page.locator(".models > li")).to_have_count(0)
