"""The section of keys, which operators see where keys are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.conftest import OpenPage
from browser.test_sections import HIDDEN_AT_THE_SIDE, complaints
from playwright.async_api import expect
from system.running_gateway import StartGateway

from hostler.gateway.auth import keys
from hostler.gateway.context import KeyRules

pytestmark = pytest.mark.anyio

NASTY = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("width", [375, 1280])
async def test_operators_see_limits_and_what_was_used(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "keys"
    boss = keys.add(path, "boss", ["read", "operate"], note=NASTY)
    rules = KeyRules(models=("a*",), requests_per_minute=60, tokens_per_day=100_000, dollars_per_day=2.5)
    bob = keys.add(path, "bob", ["infer"], rules=rules, expires=4_000_000_000)
    settings = {"api_keys_file": str(path), "key_usage_file": str(tmp_path / "usage.json")}
    viewport = {"width": width, "height": 800}
    async with (
        start_gateway({"a": {}}, gateway=settings) as gateway,
        open_page(gateway.url, complains=True, viewport=viewport) as page,
    ):
        await gateway.chat("a", key=bob)
        await page.get_by_label("API key").fill(boss)
        await page.keyboard.press("Enter")
        await page.get_by_role("navigation").get_by_role("link", name="Keys").click()
        row = page.get_by_role("row").filter(has_text="bob")
        for words in ("60 requests/min", "100,000 tokens/day", "$2.50/day", "models a*", "1 request,"):
            await expect(row).to_contain_text(words)
        await expect(page.get_by_role("row").filter(has_text="boss")).to_contain_text(NASTY)
        assert await complaints(page) == []
        assert await page.evaluate(HIDDEN_AT_THE_SIDE) == []


async def test_who_may_not_operate_does_not_see_it(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path
) -> None:
    key = keys.add(tmp_path / "keys", "anna", ["read"])
    settings = {"api_keys_file": str(tmp_path / "keys")}
    async with start_gateway({"a": {}}, gateway=settings) as gateway, open_page(gateway.url, complains=True) as page:
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#link")).to_have_text("live")
        assert await page.get_by_role("link", name="Keys").count() == 0
