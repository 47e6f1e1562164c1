"""Models from registries, on the dashboard: search, what fits, downloads; with a hub on loopback."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from browser.conftest import OpenPage
from browser.test_sections import HIDDEN_AT_THE_SIDE, complaints
from fakes.model_folders import write_chat
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub
from playwright.async_api import Locator, Page, expect
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE

pytestmark = pytest.mark.anyio

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ScriptedHub]:
    with running_hub() as scripted:
        content = write_chat(tmp_path / "m.gguf").read_bytes()
        scripted.add("org/tiny", "tiny-Q4_K_M.gguf", content)
        scripted.add("org/tiny", "tiny-Q8_0.gguf", content + b"\0" * 2_000_000)
        scripted.licenses["org/tiny"] = f"mit {NASTY}"
        yield scripted


@pytest.fixture
def url(hub: ScriptedHub, tmp_path: Path) -> Iterator[str]:
    """`hostler up` with a profile, and this hub as its registry."""
    (tmp_path / "hostler.yaml").write_text(f"""\
gateway: {{listen: ["127.0.0.1:0"]}}
supervisor: {{engine: "{sys.executable} -I -S {FAKE_ENGINE}"}}
profiles: {{first: {{model: {tmp_path / "m.gguf"}}}}}
""")
    state = {name: str(tmp_path / name.lower()) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    environ = {**state, **hub_environment(hub, str(tmp_path / "huggingface"))}
    arguments = ("up", "--config", str(tmp_path / "hostler.yaml"), "--plain")
    with run_hostler(*arguments, errors=tmp_path / "log", environ=environ) as hostler:
        yield hostler.address


async def search(page: Page, text: str) -> None:
    await page.get_by_label("Model", exact=True).fill(text)
    await page.get_by_role("button", name="Search").click()


def downloads(page: Page) -> Locator:
    return page.get_by_role("list", name="Downloads")


@pytest.mark.parametrize("width", [375, 1280])
async def test_search_shows_what_fits(url: str, open_page: OpenPage, width: int) -> None:
    async with open_page(f"{url}/ui/#get", viewport={"width": width, "height": 800}) as page:
        await search(page, "tiny")
        await page.get_by_role("button", name="Files of org/tiny").click()
        offer = page.get_by_role("region", name="org/tiny", exact=True)
        await expect(offer).to_contain_text("GiB of memory")
        await expect(offer).to_contain_text(f"mit {NASTY}")
        row = offer.get_by_role("row").filter(has_text="Q4_K_M (suggested)")
        await expect(row).to_contain_text("yes")
        await expect(row).to_contain_text("KiB")
        await expect(offer.get_by_role("row").filter(has_text="Q8_0")).to_contain_text("yes")
        assert await complaints(page) == []
        assert await page.evaluate(HIDDEN_AT_THE_SIDE) == []
        await page.get_by_role("button", name="Back to the results").click()
        await expect(page.get_by_role("region", name="Repositories").first).to_contain_text("org/tiny")


async def test_a_download_shows_its_progress_and_becomes_a_model(
    hub: ScriptedHub, url: str, open_page: OpenPage, tmp_path: Path
) -> None:
    hub.pauses["org/tiny/tiny-Q8_0.gguf"] = 1_200_000
    async with open_page(f"{url}/ui/#get") as page:
        await search(page, "hf.co/org/tiny:Q8_0")
        await page.get_by_label("Name of the profile").fill("mine")
        await page.get_by_role("button", name="Download Q8_0").click()
        bar = page.get_by_role("progressbar", name="Progress of mine")
        await expect(bar).to_have_attribute("value", re.compile(r"0\.\d+"))
        await expect(downloads(page)).to_contain_text("of 1.9 MiB")
        hub.proceed.set()
        await expect(downloads(page)).to_contain_text("ready to use")
        await page.get_by_role("link", name="Now").click()
        await expect(page.locator(".models > li").filter(has_text="mine")).to_contain_text("not loaded")
    assert "hf:org/tiny/tiny-Q8_0.gguf" in (tmp_path / "hostler.models.yaml").read_text()


async def test_a_cancelled_download_goes_on_where_it_stopped(hub: ScriptedHub, url: str, open_page: OpenPage) -> None:
    hub.pauses["org/tiny/tiny-Q8_0.gguf"] = 1_200_000
    async with open_page(f"{url}/ui/#get") as page:
        await search(page, "hf.co/org/tiny:Q8_0")
        await page.get_by_role("button", name="Download Q8_0").click()
        await anyio.to_thread.run_sync(hub.paused.wait, 30)
        await expect(downloads(page)).to_contain_text("of 1.9 MiB")
        await page.get_by_role("button", name="Cancel tiny-q8_0").click()
        await expect(downloads(page)).to_contain_text("cancelled; the next download continues it")
        await page.get_by_role("button", name="Dismiss tiny-q8_0").click()
        await expect(downloads(page)).to_be_hidden()
        hub.proceed.set()
        await page.get_by_role("button", name="Download Q8_0").click()
        await expect(downloads(page)).to_contain_text("ready to use")
        await expect(downloads(page).get_by_role("listitem")).to_have_count(1)
        await downloads(page).get_by_role("link", name="Try it").click()
        await expect(page.get_by_label("Model", exact=True)).to_have_value("tiny-q8_0")
    assert any((wanted or "").startswith("bytes=1") for *_, wanted in hub.requests)


async def test_what_goes_wrong_is_shown(hub: ScriptedHub, url: str, open_page: OpenPage) -> None:
    hub.gated.add("org/tiny")
    async with open_page(f"{url}/ui/#get", complains=True) as page:
        await search(page, "org/missing")
        await expect(page.get_by_role("alert").filter(has_text="there is no repository org/missing")).to_be_visible()
        await search(page, "org/tiny")
        await expect(page.get_by_role("alert").filter(has_text="the model is gated")).to_be_visible()
        await search(page, "nothing like this")
        await expect(page.get_by_text("No repository with GGUF files was found.")).to_be_visible()
        hub.gated.clear()
        await search(page, "org/tiny")
        await page.get_by_label("Name of the profile").fill("first")
        await page.get_by_role("button", name="Download Q8_0").click()
        await expect(page.locator("#alert")).to_contain_text("there is a model first already")


async def test_a_model_of_ollama_s_registry_shows_its_licence(hub: ScriptedHub, url: str, open_page: OpenPage) -> None:
    content = hub.files["org/tiny/tiny-Q4_K_M.gguf"]
    hub.add_registry_model("library/tiny", "8b", model=content, license=f"A licence {NASTY}\nwith terms".encode())
    async with open_page(f"{url}/ui/#get") as page:
        await search(page, "tiny:8b")
        await page.get_by_text(f"Licence: A licence {NASTY}").click()
        await expect(page.get_by_text("with terms")).to_be_visible()
        await page.get_by_role("button", name="Download 8b").click()
        await expect(downloads(page)).to_contain_text("ready to use")
