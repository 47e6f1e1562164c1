"""Every section by keyboard alone: what can be used is reached, in the order it is read, and seen to be reached."""

from __future__ import annotations

import pytest
from browser.conftest import OpenPage
from browser.test_everybody import SECTIONS
from playwright.async_api import expect
from system.house import OpenHouse

pytestmark = pytest.mark.anyio

ENDLESS = {"chunks": 50_000, "chunk_delay": 0.02}

#: What can be used and is shown, in the order of the document.
USABLE = """[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    .filter(each => each.checkVisibility({visibilityProperty: true}) && !each.disabled && !each.closest('[inert]'))"""
NAMED = "each => each.id || each.getAttribute('aria-label') || each.textContent.trim().slice(0, 60) || each.tagName"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_whatever_can_be_used_is_reached_in_order_and_seen(
    open_house: OpenHouse, open_page: OpenPage, scheme: str
) -> None:
    profiles = {"a": {"script": ENDLESS}, "b": {}, "broken": {"script": {"exit_code": 1}}}
    async with open_house(profiles) as house:
        await house.chat("b")
        await house.chat("broken")
        async with house.stream("a"), open_page(f"{house.url}/ui/", color_scheme=scheme) as page:
            for section in SECTIONS:
                await page.get_by_role("navigation").get_by_role("link", name=section).click()
                await expect(page.get_by_role("heading", level=2)).to_have_text(section)
                # What moves by itself while we walk would be another page at every step.
                await page.evaluate("window.stop()")
                await page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges()")
                await page.evaluate(f"window.usable = {USABLE}; window.met = []")
                await page.evaluate("document.body.tabIndex = -1; document.body.focus()")
                count = await page.evaluate("usable.length")
                assert count > 8, section
                for _ in range(count + 8):
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


#: Whether the middle of what has the focus is seen, rather than something that stays in place above it.
COVERED = """() => {
  const node = document.activeElement, box = node.getBoundingClientRect();
  if (node === document.body || box.height > innerHeight / 2) return null;
  const top = document.elementFromPoint(Math.min(innerWidth - 1, box.x + box.width / 2), box.y + box.height / 2);
  return top && (node.contains(top) || top.contains(node)) ? null : `${node.tagName} ${node.textContent.slice(0, 40)}`;
}"""


async def test_what_has_the_focus_is_not_covered_on_a_phone(open_house: OpenHouse, open_page: OpenPage) -> None:
    profiles = {name: {} for name in "abcdef"}
    async with open_house(profiles) as house:
        for name in profiles:
            await house.chat(name)
        async with open_page(f"{house.url}/ui/", viewport={"width": 320, "height": 568}) as page:
            for section in ("Now", "Flow", "Try it"):
                await page.get_by_role("navigation").get_by_role("link", name=section).click()
                await expect(page.get_by_role("heading", level=2)).to_have_text(section)
                await expect(page.locator("#link")).to_have_text("live")
                for key in ("Tab", "Shift+Tab"):
                    for _ in range(25):
                        await page.keyboard.press(key)
                        assert await page.evaluate(COVERED) is None, (section, key)
