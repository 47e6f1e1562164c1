"""Keyboard navigation: every control is reached in reading order, with a visible focus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser.conftest import OpenPage
from browser.sections import SECTIONS, open_section
from fakes.flag_file import FlagFile
from playwright.async_api import Page, expect
from playwright.async_api import TimeoutError as Overdue
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

ENDLESS = {"chunks": 50_000, "chunk_delay": 0.02}

#: The visible controls, in document order.
USABLE = """[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    .filter(each => each.checkVisibility({visibilityProperty: true}) && !each.disabled && !each.closest('[inert]'))"""
NAMED = "each => each.id || each.getAttribute('aria-label') || each.textContent.trim().slice(0, 60) || each.tagName"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_control_is_reached_in_order_with_a_visible_focus(
    start_gateway: StartGateway, open_page: OpenPage, scheme: str
) -> None:
    profiles = {"a": {"script": ENDLESS}, "b": {}, "broken": {"script": {"exit_code": 1}}}
    async with start_gateway(profiles) as gateway:
        await gateway.chat("b")
        await gateway.chat("broken")
        async with gateway.stream("a"), open_page(f"{gateway.url}/ui/", color_scheme=scheme) as page:
            for section in SECTIONS:
                await open_section(page, section)
                # What moves by itself while we walk would be another page at every step.
                await page.evaluate("window.stop()")
                await page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges()")
                await page.evaluate(f"window.usable = {USABLE}; window.met = []")
                await page.evaluate("document.body.tabIndex = -1; document.body.focus()")
                count = await page.evaluate("usable.length")
                assert count > 8, section
                # Browsers also stop at what can be scrolled.
                for _ in range(2 * count + 8):
                    if await page.evaluate("usable.every(each => !each.isConnected || met.includes(each))"):
                        break
                    await page.keyboard.press("Tab")
                    await page.evaluate("met.push(document.activeElement)")
                    style = await page.evaluate(
                        "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))"
                    )
                    if await page.evaluate("usable.includes(document.activeElement)"):
                        assert style[0] != "none", await page.evaluate(f"({NAMED})(document.activeElement)")
                        assert style[1] >= 2
                missed = await page.evaluate(
                    f"usable.filter(each => each.isConnected && !met.includes(each)).map({NAMED})"
                )
                assert missed == [], section
                order = await page.evaluate("met.map(each => usable.indexOf(each)).filter(each => each >= 0)")
                first_round = order[: order.index(max(order)) + 1]
                assert first_round == sorted(first_round), section


#: Whether a person sees what has the focus: its middle, and halfway from there to each edge.
SEEN = """() => {
  const node = document.activeElement, boxes = [...node.getClientRects()];
  const halves = [[0.5, 0.5], [0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]];
  const at = (box, [x, y]) => document.elementFromPoint(box.x + x * box.width, box.y + y * box.height);
  return node === document.body || (boxes.length > 0 && boxes.every((box) =>
    box.height > innerHeight / 2 || halves.every((part) => node.contains(at(box, part)))));
}"""
#: Whether all of a link in the navigation is seen; browsers scroll to whole pixels.
WHOLE = """() => {
  const link = document.activeElement.getBoundingClientRect();
  const row = document.querySelector("nav ul").getBoundingClientRect();
  return link.left >= row.left - 1 && link.right <= row.right + 1;
}"""
PHONE = {"width": 320, "height": 568}


async def press(page: Page, key: str, seen: str = SEEN) -> None:
    """Move the focus and wait until what has it is `seen`: scrolling may take its time."""
    await page.keyboard.press(key)
    try:
        await page.wait_for_function(seen)
    except Overdue:
        name = await page.evaluate(f"({NAMED})(document.activeElement)")
        raise AssertionError(f"{key}: {name!r} has the focus and is covered") from None


async def test_the_focused_element_is_not_covered_on_a_phone(start_gateway: StartGateway, open_page: OpenPage) -> None:
    profiles = {name: {} for name in "abcdef"}
    rows = {"Now": ".models > li", "Flow": "[aria-label='Recent requests'] > li", "Try it": "#try-model option"}
    async with start_gateway(profiles) as gateway:
        for name in profiles:
            await gateway.chat(name)
        async with open_page(f"{gateway.url}/ui/", viewport=PHONE) as page:
            for section, row in rows.items():
                await open_section(page, section)
                await expect(page.locator(row)).to_have_count(len(profiles))
                await expect(page.locator("#link")).to_have_text("live")
                for key in ("Tab", "Shift+Tab"):
                    for _ in range(25):
                        await press(page, key)


async def test_the_focused_element_is_not_covered_while_an_answer_streams(
    start_gateway: StartGateway, open_page: OpenPage, flags: Callable[[str], FlagFile]
) -> None:
    script = {"chunks": 40, "text": "line{}\n", "last_when": flags("end").path}
    async with (
        start_gateway({"a": {"script": script}}) as gateway,
        open_page(f"{gateway.url}/ui/#try", viewport=PHONE) as page,
    ):
        await page.get_by_label("Message").fill("Hello")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await expect(page.locator(".text").nth(1)).to_contain_text("line38")
        for key in ("Tab", "Shift+Tab"):
            for _ in range(20):
                await press(page, key)


@pytest.mark.parametrize("spacing", [-1.0, -0.1, 0.0, 0.8, 2.0, 4.0])
async def test_the_focused_link_is_fully_visible_in_any_font(
    start_gateway: StartGateway, open_page: OpenPage, spacing: float
) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/", viewport=PHONE) as page:
        await open_section(page, "Now")
        await page.evaluate(f"document.querySelector('nav').style.letterSpacing = '{spacing}px'")
        await page.locator("nav a").first.focus()
        for key, names in (("Tab", SECTIONS[1:]), ("Shift+Tab", SECTIONS[-2::-1])):
            for name in names:
                await press(page, key, WHOLE)
                await expect(page.get_by_role("navigation").get_by_role("link", name=name)).to_be_focused()


async def test_a_partly_visible_link_stays_under_the_pointer(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/", viewport=PHONE) as page:
        await page.locator("nav ul").evaluate(
            "(row) => { const link = row.children[4]; row.scrollLeft = link.offsetLeft + link.offsetWidth / 2"
            " - row.offsetLeft - row.clientWidth; }"
        )
        row = await page.locator("nav ul").bounding_box()
        assert row is not None
        await page.mouse.click(row["x"] + row["width"] - 5, row["y"] + row["height"] / 2)
        await expect(page.get_by_role("heading", level=2)).to_have_text(SECTIONS[4])
