"""Login with an API key, what its scopes allow, and logout."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from browser.conftest import OpenPage
from playwright.async_api import Error, expect
from system.running_gateway import StartGateway

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio


def keyed(folder: Path, *scopes: keys.Scope) -> tuple[str, dict[str, str]]:
    """A key of these scopes, and the gateway's settings."""
    return keys.add(folder / "keys", "anna", scopes), {"api_keys_file": str(folder / "keys")}


async def test_an_operator_logs_in_acts_and_logs_out(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path
) -> None:
    key, settings = keyed(tmp_path, "infer", "read", "operate")
    async with start_gateway({"a": {}}, gateway=settings) as gateway, open_page(gateway.url, complains=True) as page:
        await page.get_by_label("API key").fill("hst-wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("invalid API key")
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("#link")).to_have_text("live")
        (cookie,) = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert key not in await page.content()
        await page.get_by_role("button", name="Load a").click()
        await expect(page.locator(".models")).to_contain_text("ready")
        await page.get_by_role("link", name="Try it").click()
        await page.get_by_label("Message").fill("Hello")
        await page.keyboard.press("Enter")
        await expect(page.locator(".text").nth(1)).to_contain_text("word4")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        await page.goto(f"{gateway.url}/ui/")
        await expect(page.get_by_label("API key")).to_be_visible()


async def test_a_key_without_operate_sees_no_actions(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path
) -> None:
    key, settings = keyed(tmp_path, "read")
    async with start_gateway({"a": {}}, gateway=settings) as gateway, open_page(gateway.url, complains=True) as page:
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator(".models")).to_contain_text("not loaded")
        assert await page.get_by_role("button", name="Load a").count() == 0
        refused = await page.evaluate(
            "fetch('/admin/load', {method: 'POST', headers: {'Content-Type': 'application/json'}, "
            "body: JSON.stringify({model: 'a'})}).then((answer) => answer.status)"
        )
        assert refused == 403


async def test_a_revoked_key_ends_its_session(start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "read")
    keys.add(tmp_path / "keys", "another", ["read"])
    async with start_gateway({"a": {}}, gateway=settings) as gateway, open_page(gateway.url, complains=True) as page:
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#link")).to_have_text("live")
        keys.revoke(tmp_path / "keys", "anna")
        with anyio.fail_after(60):
            left = False
            while not left:  # the file is looked at once a second
                # The page may load again by itself at the same moment.
                with suppress(Error):
                    await page.reload()
                    left = await page.get_by_label("API key").is_visible()


async def test_login_works_without_javascript(start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path) -> None:
    key, settings = keyed(tmp_path, "read")
    async with (
        start_gateway({"a": {}}, gateway=settings) as gateway,
        open_page(gateway.url, java_script_enabled=False, complains=True) as page,
    ):
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("rowheader", name="a", exact=True)).to_be_visible()
