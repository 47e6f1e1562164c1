"""The page for everybody: screen readers, keyboards, phones, dark rooms; and names that try to be more than text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from browser.conftest import OpenPage, artefacts
from playwright.async_api import Page, expect
from system.house import House, OpenHouse

from hostler.gateway import keys

pytestmark = pytest.mark.anyio

SECTIONS = ["Now", "Flow", "Switching", "Chain", "Charts", "Try it", "Logs", "Connect"]
NASTY = "<img src=x onerror=alert(1)>"
SLOW = {"chunks": 200, "chunk_delay": 0.05}


async def lived_in(house: House) -> None:
    """A house in which something has happened."""
    await house.chat("a")
    await house.chat("b")
    await house.chat("broken")
    await house.chat("nobody-has-this")


async def complaints(page: Page) -> list[str]:
    """What axe-core finds, down to moderate."""
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]}"
        for each in found
        if each["impact"] != "minor"
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
async def test_every_section_is_readable(open_house: OpenHouse, open_page: OpenPage, look: str, tmp_path: Path) -> None:
    options = {"viewport": {"width": 375, "height": 740}} if look == "phone" else {"color_scheme": look}
    profiles = {"a": {"script": SLOW}, "b": {}, "broken": {"script": {"exit_code": 1}}}
    async with open_house(profiles) as house:
        await lived_in(house)
        async with house.stream("a"), open_page(f"{house.url}/ui/", **options) as page:
            for section in SECTIONS:
                await page.get_by_role("navigation").get_by_role("link", name=section).click()
                await expect(page.get_by_role("heading", level=2)).to_have_text(section)
                if section == "Flow":
                    await page.locator("summary").first.click()
                await page.screenshot(
                    path=artefacts(tmp_path) / f"{section.replace(' ', '-')}-{look}.png", full_page=True
                )
                assert await complaints(page) == [], section
                wider = await page.evaluate(
                    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                assert wider <= 0, section


async def test_the_way_in_is_readable(open_house: OpenHouse, open_page: OpenPage, tmp_path: Path) -> None:
    keys.add(tmp_path / "keys", "anna", ["read"])
    async with (
        open_house({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as house,
        open_page(house.url, complains=True) as page,
    ):
        assert await complaints(page) == []


async def test_a_keyboard_is_enough(open_house: OpenHouse, open_page: OpenPage) -> None:
    async with open_house({"a": {}, "b": {}}) as house:
        await house.chat("a")
        async with open_page(f"{house.url}/ui/") as page:
            await expect(page.get_by_role("button", name="Switch to b")).to_be_visible()

            async def focused() -> str:
                return str(
                    await page.evaluate(
                        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
                    )
                )

            async def tab_to(name: str) -> None:
                for _ in range(40):
                    await page.keyboard.press("Tab")
                    if await focused() == name:
                        return
                raise AssertionError(f"{name} is not reached by tab")

            await page.keyboard.press("Tab")
            assert await focused() == "Skip to content"
            await tab_to("Switch to b")
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("dialog")).to_be_visible()
            await tab_to("Switch now")
            await page.keyboard.press("Enter")
            await expect(page.locator(".models > li[data-state=ready]")).to_contain_text("b")
            await page.locator("nav a").first.focus()
            await tab_to("Flow")
            await page.keyboard.press("Enter")
            assert await focused() == "Flow"  # the section's title: reading goes on there
    assert house.starts() == ["a", "b"]


async def test_a_name_that_is_markup_is_text_everywhere(open_house: OpenHouse, open_page: OpenPage) -> None:
    profiles = {"a": {"description": NASTY, "script": {"stderr": f"{NASTY}\n", "text": f"{NASTY}{{}}"}}}
    backends = {"else": {"kind": "openai", "url": "http://127.0.0.1:9/v1", "models": {NASTY: NASTY}}}
    async with open_house(profiles, backends=backends) as house:
        await house.chat("a")
        await house.chat(NASTY)
        plain = (await house.http.get("/ui/", headers={"Accept": "text/html"})).text
        assert NASTY not in plain
        async with open_page(f"{house.url}/ui/") as page:
            for section in SECTIONS:
                await page.get_by_role("navigation").get_by_role("link", name=section).click()
                await page.wait_for_timeout(300)
                if section == "Now":
                    await expect(page.locator(".models")).to_contain_text(NASTY)
                    elsewhere = page.get_by_role("region", name="Elsewhere")
                    await expect(elsewhere.get_by_role("heading", name=NASTY)).to_be_visible()
                    await expect(elsewhere).to_contain_text("unavailable")
                    await expect(elsewhere).to_contain_text("else cannot be reached")
                if section == "Flow":
                    await expect(page.get_by_role("list", name="Last requests")).to_contain_text(NASTY)
                if section == "Try it":
                    await page.get_by_label("Model", exact=True).select_option("a")
                    await page.get_by_label("Message").fill(NASTY)
                    await page.keyboard.press("Enter")
                    await expect(page.locator(".said").nth(1)).to_contain_text(f"{NASTY}4")
                if section == "Logs":
                    await page.get_by_label("Log of").select_option(label="a on local")
                    await expect(page.get_by_role("log")).to_contain_text(NASTY)
                assert await page.locator("main img").count() == 0


async def test_logs_are_filtered(open_house: OpenHouse, open_page: OpenPage) -> None:
    script = {"stderr": "one apple\nerror: one pear\n"}
    async with open_house({"a": {"script": script}}) as house:
        await house.chat("a")
        async with open_page(f"{house.url}/ui/#logs") as page:
            await page.get_by_label("Log of").select_option(label="a on local")
            await expect(page.get_by_role("log")).to_contain_text("one apple")
            await page.get_by_label("Lines with").fill("PEAR")
            await expect(page.get_by_role("log")).to_have_text("error: one pear")
            await page.get_by_label("Lines with").fill("")
            await page.get_by_label("Level").select_option("errors")
            await expect(page.get_by_role("log")).to_have_text("error: one pear")


async def test_settings_name_this_gateway(open_house: OpenHouse, open_page: OpenPage) -> None:
    async with open_house({"a": {}}) as house, open_page(f"{house.url}/ui/#connect") as page:
        for title in ("OpenAI SDKs", "Ollama clients", "Open WebUI", "Hermes"):
            await expect(page.get_by_role("region", name=re.compile(title)).first).to_contain_text(house.url)
        text = await page.get_by_label("Settings for curl", exact=True).inner_text()
        body = json.loads(text.partition("-d '")[2].rstrip("'\n"))
        assert (await house.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_charts_are_drawn_from_the_past(open_house: OpenHouse, open_page: OpenPage) -> None:
    async with open_house({"a": {}}) as house:
        await house.chat("a")
        async with open_page(f"{house.url}/ui/#charts") as page:
            chart = page.get_by_role("img", name=re.compile("^Time to first word: lately median"))
            await expect(chart).to_be_visible()
            await expect(page.get_by_role("img", name=re.compile("^Switches: in all 1"))).to_be_visible()


async def test_nothing_is_loaded_from_anywhere_else(open_house: OpenHouse, open_page: OpenPage) -> None:
    async with open_house({"a": {}}) as house, open_page(f"{house.url}/ui/") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.reload()
        for section in SECTIONS:
            await page.get_by_role("navigation").get_by_role("link", name=section).click()
        await expect(page.locator("#link")).to_have_text("live")
        assert asked
        assert all(url.startswith(house.url) for url in asked)
