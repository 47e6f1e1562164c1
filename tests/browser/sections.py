"""The dashboard's sections, and how a test opens one."""

from __future__ import annotations

from playwright.async_api import Page, expect

#: What each section shows as soon as the gateway's data is there, if a model has answered a request before.
_FILLED = {
    "Now": ".models > li",
    "Flow": "[aria-label='Recent requests'] > li",
    "Switching": "[aria-label='Recent switches'] tbody tr",
    "Chain": ".hops > li",
    "Charts": "figure svg[aria-label]",
    "Try it": "#try-model option",
    "Logs": "#log-source option:nth-child(2)",
    "Connect": ".recipes pre",
    "Get models": "#get-words",
}
SECTIONS = list(_FILLED)


async def open_section(page: Page, section: str) -> None:
    """Open a section from the navigation and wait until it shows the gateway's data."""
    await page.get_by_role("navigation").get_by_role("link", name=section).click()
    await expect(page.get_by_role("heading", level=2)).to_have_text(section)
    await expect(page.locator(_FILLED[section]).first).to_be_attached()
