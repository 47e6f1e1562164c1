"""A real browser in front of a real gateway. Needs Chromium: /usr/bin/chromium, or what `CHROMIUM` names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from system.running_gateway import StartGateway, gateway_starter

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")

#: Playwright's own arguments keep the browser headless and switch its background services off.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A service that a later version adds cannot reach anything either.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Scrolling ends in the task that began it, and text is as wide as its font says, whatever the machine's settings.
    "--disable-smooth-scrolling",
    "--font-render-hinting=none",
]

#: A window is the same on every machine.
WINDOW: dict[str, Any] = {
    "viewport": {"width": 1280, "height": 900},
    "device_scale_factor": 1,
    "reduced_motion": "reduce",
    "locale": "en-GB",
    "timezone_id": "UTC",
}

#: A machine that is busy with other things may stand still for a while.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)

OpenPage = Callable[..., AbstractAsyncContextManager[Page]]


def browser_version() -> str:
    """What the browser under test calls itself."""
    try:
        shown = subprocess.run([CHROMIUM, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{CHROMIUM}: {error}"
    return f"{shown.stdout.strip() or 'unknown version'} ({CHROMIUM})"


def pytest_report_header() -> str:
    """Name the browser, so that the log of a failure names it."""
    return f"browser: {browser_version()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name it again beside failures where `-q` has left the header out."""
    if terminalreporter.stats.keys() & {"failed", "error"} and terminalreporter.verbosity < 0:
        terminalreporter.write_line(pytest_report_header())


@pytest.fixture(autouse=True)
def loop_errors() -> None:
    """Not here: Playwright abandons tasks of its own when a page with a route is closed."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for all tests of a file, since the browser lives in it."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """Chromium, started once for each file."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def start_gateway(tmp_path: Path) -> StartGateway:
    """See `gateway_starter`."""
    return gateway_starter(tmp_path)


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> OpenPage:
    """`async with open_page(url) as page`: a window of its own. What it complains about fails the test.

    A picture of how it looked in the end is kept in HOSTLER_TEST_ARTEFACTS, else in the test's own folder.
    """

    @asynccontextmanager
    async def opened(url: str, *, complains: bool = False, **options: Any) -> AsyncIterator[Page]:
        problems: list[str] = []
        context = await browser.new_context(**{**WINDOW, **options})
        try:
            page = await context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
            page.on("dialog", lambda dialog: problems.append(f"a script said: {dialog.message}"))
            page.on("pageerror", lambda error: problems.append(str(error)))
            await page.goto(url)
            try:
                yield page
            finally:
                await page.screenshot(path=artefacts(tmp_path) / f"{request.node.name}.png", full_page=True)
        finally:
            await context.close()
        assert complains or not problems

    return opened


def artefacts(tmp_path: Path) -> Path:
    """Where pictures go."""
    folder = Path(os.environ.get("HOSTLER_TEST_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pages take their time on a busy machine, and some tests look at eight of them."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240))
