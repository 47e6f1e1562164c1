"""Every section is accessible on desktop and phone, light and dark, and shows names as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from axe_playwright_python.async_playwright import Axe
from browser.conftest import OpenPage, artefacts
from browser.sections import SECTIONS, open_section
from fakes.flag_file import FlagFile
from playwright.async_api import Page, expect
from system.running_gateway import RunningGateway, StartGateway, first_token

from hostler.gateway.auth import keys

pytestmark = pytest.mark.anyio

Flags = Callable[[str], FlagFile]

NASTY = "<img src=x onerror=alert(1)>"
#: As long as people's are.
LONG = "Qwen3-Coder-30B-A3B-Instruct-Heretic-Abliterated-Q4_K_M-x"

#: What cannot be seen without moving something sideways: beyond the edge of the page, or of what it stands in. The rows
#: of sections to choose from are the one thing that is moved, and what is for screen readers only does not count.
HIDDEN_AT_THE_SIDE = """() => [...document.querySelectorAll("main, main *")].filter((node) => {
  if (node.closest("thead, svg, select") || !node.getClientRects().length) return false;
  const own = getComputedStyle(node).display !== "inline" && node.scrollWidth > node.clientWidth + 1;
  return own || node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map((node) => `${node.tagName} ${node.className} ${node.textContent.slice(0, 60)}`)"""


async def lived_in(gateway: RunningGateway) -> None:
    """A gateway with some history."""
    await gateway.chat("a")
    await gateway.chat("b")
    await gateway.chat("broken")
    await gateway.chat("unknown-model")


async def complaints(page: Page) -> list[str]:
    """What axe-core finds, down to moderate."""
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]}"
        for each in found
        if each["impact"] != "minor"
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
async def test_every_section_is_readable(
    start_gateway: StartGateway, open_page: OpenPage, flags: Flags, device: str, scheme: str, tmp_path: Path
) -> None:
    end = flags("end")
    end.set()
    look = f"{device}-{scheme}"
    viewport = {"width": 375, "height": 740} if device == "phone" else {"width": 1280, "height": 900}
    options = {"viewport": viewport, "color_scheme": scheme}
    profiles = {"a": {"script": {"last_when": end.path}}, "b": {}, "broken": {"script": {"exit_code": 1}}}
    async with start_gateway(profiles) as gateway:
        await lived_in(gateway)
        end.clear()
        async with gateway.stream("a"), open_page(f"{gateway.url}/ui/", **options) as page:
            for section in SECTIONS:
                await open_section(page, section)
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


@pytest.mark.parametrize("width", [1280, 1060, 1000, 820])
async def test_requests_fit_into_windows_of_many_widths(
    start_gateway: StartGateway, open_page: OpenPage, flags: Flags, width: int, tmp_path: Path
) -> None:
    end = flags("end")
    backend = {"kind": "openai", "url": "http://127.0.0.1:9/v1", "models": {"far/*": "*"}}
    profiles = {LONG: {"script": {"last_when": end.path}}}
    async with start_gateway(profiles, backends={"router-of-many-models": backend}) as gateway:
        refused = await gateway.http.post("/v1/chat/completions", json={"model": "far/org/model-32b", "messages": []})
        assert refused.status_code >= 400
        async with gateway.stream(LONG) as answer:
            await first_token(answer)
            async with open_page(f"{gateway.url}/ui/#flow", viewport={"width": width, "height": 740}) as page:
                await expect(page.get_by_role("list", name="Requests in flight").locator("li")).to_have_count(1)
                past = page.get_by_role("list", name="Recent requests").locator("summary").first
                await expect(past.locator(".name")).to_have_text("far/org/model-32b")
                await past.click()
                await page.screenshot(path=artefacts(tmp_path) / f"Flow-{width}.png", full_page=True)
                wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert await page.evaluate(wider) <= 0
                assert await page.evaluate(HIDDEN_AT_THE_SIDE) == []
            end.set()


@pytest.mark.parametrize("width", [375, 320])
async def test_nothing_scrolls_sideways(
    start_gateway: StartGateway, open_page: OpenPage, flags: Flags, width: int, tmp_path: Path
) -> None:
    end = flags("end")
    end.set()
    profiles = {
        LONG: {"script": {"last_when": end.path}},
        f"other-{LONG}"[:57]: {},
        "broken": {"script": {"exit_code": 1}},
    }
    backends = {"away": {"kind": "openai", "url": "http://127.0.0.1:9/v1", "models": {f"cloudy-{LONG}"[:57]: "x"}}}
    async with start_gateway(profiles, backends=backends) as gateway, anyio.create_task_group() as tasks:
        for name in [*profiles, LONG]:
            await gateway.chat(name)
        end.clear()
        async with gateway.stream(LONG) as answer:
            await first_token(answer)
            tasks.start_soon(gateway.chat, f"other-{LONG}"[:57])
            await gateway.until_counts(1, 1)
            async with open_page(f"{gateway.url}/ui/", viewport={"width": width, "height": 740}) as page:
                for section in SECTIONS:
                    await open_section(page, section)
                    if section == "Flow":
                        await page.locator("summary").first.click()
                        await page.get_by_role("list", name="Recent requests").locator("summary").first.click()
                    if section == "Switching":
                        last = page.get_by_role("region", name="Recent switches").get_by_role("row")
                        await expect(last.filter(has_text="failed").first).to_contain_text("broken")
                        await expect(last.nth(1).get_by_role("cell")).to_have_count(8)
                        queued = page.get_by_role("region", name="Queue").get_by_role("row").nth(1)
                        await expect(queued.get_by_role("cell")).to_have_count(7)
                    if section == "Charts":
                        await page.get_by_text("As a table").click()
                        await expect(page.get_by_role("region", name="Figures").get_by_role("row")).not_to_have_count(1)
                    for scheme in ("light", "dark"):
                        await page.emulate_media(color_scheme=scheme)
                        name = f"{section.replace(' ', '-')}-{width}-{scheme}.png"
                        await page.screenshot(path=artefacts(tmp_path) / name, full_page=True)
                        assert await complaints(page) == [], (section, scheme)
                    assert await page.evaluate(HIDDEN_AT_THE_SIDE) == [], section
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
async def test_the_login_form_is_readable(
    start_gateway: StartGateway, open_page: OpenPage, device: str, scheme: str, tmp_path: Path
) -> None:
    keys.add(tmp_path / "keys", "anna", ["read"])
    viewport = {"width": 375, "height": 740} if device == "phone" else {"width": 1280, "height": 900}
    async with (
        start_gateway({"a": {}}, gateway={"api_keys_file": str(tmp_path / "keys")}) as gateway,
        open_page(gateway.url, complains=True, viewport=viewport, color_scheme=scheme) as page,
    ):
        assert await complaints(page) == []


@pytest.mark.parametrize("device", ["desktop", "phone"])
async def test_models_are_listed_without_javascript(
    start_gateway: StartGateway, open_page: OpenPage, device: str
) -> None:
    width = 375 if device == "phone" else 1280
    async with (
        start_gateway({LONG: {"aliases": ["short"]}}) as gateway,
        open_page(f"{gateway.url}/ui/", java_script_enabled=False, viewport={"width": width, "height": 740}) as page,
    ):
        row = page.get_by_role("region", name="Models").get_by_role("row").nth(1)
        for text in (LONG, "short", "unloaded"):
            await expect(row).to_contain_text(text)
        for cell in await row.get_by_role("cell").all():
            box = await cell.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= width


async def test_a_keyboard_is_enough(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.chat("a")
        async with open_page(f"{gateway.url}/ui/") as page:
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
            title = page.get_by_role("heading", level=2, name="Flow", exact=True)
            await expect(title).to_be_focused()  # reading goes on there
    assert gateway.starts() == ["a", "b"]


async def test_a_name_that_is_markup_is_text_everywhere(start_gateway: StartGateway, open_page: OpenPage) -> None:
    profiles = {"a": {"description": NASTY, "script": {"stderr": f"{NASTY}\n", "text": f"{NASTY}{{}}"}}}
    backends = {"else": {"kind": "openai", "url": "http://127.0.0.1:9/v1", "models": {NASTY: NASTY}}}
    async with start_gateway(profiles, backends=backends) as gateway:
        await gateway.chat("a")
        await gateway.chat(NASTY)
        plain = (await gateway.http.get("/ui/", headers={"Accept": "text/html"})).text
        assert NASTY not in plain
        async with open_page(f"{gateway.url}/ui/") as page:
            for section in SECTIONS:
                await open_section(page, section)
                if section == "Now":
                    await expect(page.locator(".models")).to_contain_text(NASTY)
                    elsewhere = page.get_by_role("region", name="Other servers")
                    await expect(elsewhere.get_by_role("heading", name=NASTY)).to_be_visible()
                    await expect(elsewhere).to_contain_text("unavailable")
                    await expect(elsewhere).to_contain_text("else cannot be reached")
                if section == "Flow":
                    await expect(page.get_by_role("list", name="Recent requests")).to_contain_text(NASTY)
                if section == "Try it":
                    away = page.get_by_label("Model", exact=True).get_by_role("option", name=NASTY)
                    await expect(away).to_have_text(f"{NASTY} (unavailable)")
                    await page.get_by_label("Model", exact=True).select_option("a")
                    await page.get_by_label("Message").fill(NASTY)
                    await page.keyboard.press("Enter")
                    await expect(page.locator(".text").nth(1)).to_contain_text(f"{NASTY}4")
                if section == "Logs":
                    await page.get_by_label("Source").select_option(label="a on local")
                    await expect(page.get_by_role("log")).to_contain_text(NASTY)
                assert await page.locator("main img").count() == 0


async def test_logs_are_filtered(start_gateway: StartGateway, open_page: OpenPage) -> None:
    script = {"stderr": "one apple\nerror: one pear\n"}
    async with start_gateway({"a": {"script": script}}) as gateway:
        await gateway.chat("a")
        async with open_page(f"{gateway.url}/ui/#logs") as page:
            await page.get_by_label("Source").select_option(label="a on local")
            await expect(page.get_by_role("log")).to_contain_text("one apple")
            await page.get_by_label("Filter").fill("PEAR")
            await expect(page.get_by_role("log")).to_have_text("error: one pear")
            await page.get_by_label("Filter").fill("")
            await page.get_by_label("Level").select_option("errors")
            await expect(page.get_by_role("log")).to_have_text("error: one pear")


async def test_settings_name_this_gateway(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/#connect") as page:
        for title in ("OpenAI SDKs", "Ollama clients", "Open WebUI", "Hermes"):
            await expect(page.get_by_role("region", name=re.compile(title)).first).to_contain_text(gateway.url)
        curl = page.get_by_label("Settings for curl", exact=True)
        await expect(curl).to_contain_text('"model":"a"')
        text = await curl.inner_text()
        body = json.loads(text.partition("-d '")[2].rstrip("'\n"))
        assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_charts_show_the_history(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway:
        await gateway.chat("a")
        async with open_page(f"{gateway.url}/ui/#charts") as page:
            chart = page.get_by_role("img", name=re.compile("^Time to first token: latest median"))
            await expect(chart).to_be_visible()
            await expect(page.get_by_role("img", name=re.compile("^Switches: total 1"))).to_be_visible()


async def test_nothing_is_loaded_from_other_hosts(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/") as page:
        await gateway.chat("a")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.reload()
        for section in SECTIONS:
            await open_section(page, section)
        await expect(page.locator("#link")).to_have_text("live")
        assert asked
        assert all(url.startswith(gateway.url) for url in asked)
