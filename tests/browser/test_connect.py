"""The settings of the section Connect, pasted and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from browser.conftest import OpenPage
from playwright.async_api import expect
from system.running_gateway import StartGateway, write_keys

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

#: What is run after the pasted lines, where these only configure a program.
PROGRAMS = {
    "Ollama clients": "import ollama; print(ollama.chat('a', [{'role': 'user', 'content': 'Hi'}]).message.content)",
    "Claude Code": (
        "import anthropic, os; print(anthropic.Anthropic().messages.create(model=os.environ['ANTHROPIC_MODEL'],"
        " max_tokens=9, messages=[{'role': 'user', 'content': 'Hi'}]).content[0].text)"
    ),
}


async def run(*command: str, env: dict[str, str]) -> str:
    """What a program prints that was started like this."""
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}

    def wait() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env={**inherited, **env}, capture_output=True, text=True, timeout=60)

    done = await anyio.to_thread.run_sync(wait)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "with keys"])
async def test_pasted_settings_work(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path, keyed: bool
) -> None:
    file, of = write_keys(tmp_path, anna=0)
    settings = {"api_keys_file": file} if keyed else {}
    async with (
        start_gateway({"a": {}}, gateway=settings) as gateway,
        open_page(gateway.url + "/ui/", complains=keyed) as page,
    ):
        if keyed:
            await page.get_by_label("API key").fill(of["anna"])
            await page.get_by_role("button", name="Log in").click()
        await expect(page.locator(".models > li")).to_have_count(1)
        await page.get_by_role("link", name="Connect").click()

        async def pasted(title: str) -> str:
            text = await page.get_by_label(f"Settings for {title}", exact=True).inner_text()
            assert ("YOUR_KEY" in text) is keyed or title == "Hermes Desktop and Hermes Agent"
            return text.replace("YOUR_KEY", of["anna"])

        def settings(text: str) -> dict[str, str]:
            lines = [line.removeprefix("export ") for line in text.splitlines() if line.startswith("export ")]
            return {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}

        openai = await pasted("OpenAI SDKs")
        program = openai.partition("# Python\n")[2]
        assert gateway.url in program
        await run(sys.executable, "-c", program, env={})
        words = "print(OpenAI().chat.completions.create(model='a', messages=[{'role': 'user', 'content': 'Hi'}]))"
        assert "word0" in await run(sys.executable, "-c", f"from openai import OpenAI; {words}", env=settings(openai))
        if not keyed:  # its own environment has no word for a key: those paste the Python lines
            text = await pasted("Ollama clients")
            assert "word0" in await run(sys.executable, "-c", PROGRAMS["Ollama clients"], env=settings(text))
        else:
            lines = (await pasted("Ollama clients")).partition("# Python\n")[2]
            question = ".chat('a', [{'role': 'user', 'content': 'Hi'}]).message.content)"
            *imports, client = lines.splitlines()
            program = "\n".join([*imports, f"print({client}{question}"])
            assert "word0" in await run(sys.executable, "-c", program, env={})
        text = await pasted("Claude Code")
        assert "word0" in await run(sys.executable, "-c", PROGRAMS["Claude Code"], env=settings(text))
        assert len(gateway.requests("a")) == 4
        await expect(page.get_by_role("region", name="Hermes Desktop and Hermes Agent")).to_contain_text(
            "64,000 tokens"
        )


async def test_a_name_that_is_markup_is_quoted_for_every_program(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    backends = {"else": {"kind": "openai", "url": "http://127.0.0.1:9/v1", "models": {nasty: nasty}}}
    async with start_gateway({}, backends=backends) as gateway, open_page(f"{gateway.url}/ui/#connect") as page:
        for title in ("Hermes Desktop and Hermes Agent", "OpenAI SDKs", "curl", "Ollama clients", "Claude Code"):
            await expect(page.get_by_label(f"Settings for {title}", exact=True)).to_contain_text(nasty)
        for section, shown in (("Chain", ".lane .label"), ("Try it", "#try-model")):
            await page.get_by_role("link", name=section).click()
            await gateway.http.post("/v1/chat/completions", json={"model": nasty, "messages": []})
            await expect(page.locator(shown).filter(has_text=nasty).first).to_be_attached()
        assert await page.locator("main img").count() == 0
