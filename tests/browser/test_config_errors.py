"""Mistakes in the configuration file on the dashboard."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import pytest
from browser.conftest import OpenPage
from playwright.async_api import expect
from system.installation import Installation

pytestmark = pytest.mark.anyio


async def test_mistakes_are_shown_until_they_are_corrected(tmp_path: Path, open_page: OpenPage) -> None:
    installed = Installation(tmp_path)
    context = installed.run()
    running = await anyio.to_thread.run_sync(context.__enter__)
    try:
        async with open_page(f"{running.address}/ui/") as page:
            shown = page.locator("#config-errors")
            await expect(shown).to_be_hidden()
            installed.save("profiles:\n  a: {modell: x}\n")
            await expect(shown).to_contain_text("hostler.yaml:2: profiles.a.modell", timeout=15_000)
            installed.save()
            await expect(shown).to_be_hidden(timeout=15_000)
    finally:
        await anyio.to_thread.run_sync(context.__exit__, None, None, None)
