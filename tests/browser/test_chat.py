"""The chat of the section Try it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from browser.conftest import OpenPage
from fakes.flag_file import FlagFile
from playwright.async_api import Page, Route, expect
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

Flags = Callable[[str], FlagFile]


async def say(page: Page, text: str) -> None:
    """Type and send, by keyboard."""
    await page.get_by_label("Message").fill(text)
    await page.get_by_label("Message").press("Enter")


async def test_an_answer_is_shown_with_its_thinking(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with (
        start_gateway({"a": {"script": {"reasoning": 2}}}) as gateway,
        open_page(f"{gateway.url}/ui/#try") as page,
    ):
        await say(page, "Hello")
        answer = page.get_by_role("list", name="Conversation").get_by_role("listitem").nth(1)
        await expect(answer.locator(".text")).to_have_text("word2 word3 word4 ")
        await expect(answer.locator("details")).to_contain_text("word0 word1")
        await expect(answer).to_contain_text("a on local")
        await expect(answer).to_contain_text("tokens")
        await say(page, "And now?")
        await expect(page.get_by_role("list", name="Conversation").get_by_role("listitem")).to_have_count(4)
        asked = gateway.requests("a")[-1]
    assert asked["method"] == "POST"


async def test_a_waiting_chat_shows_load_progress(
    start_gateway: StartGateway, open_page: OpenPage, flags: Flags
) -> None:
    ready = flags("ready")
    script = {"ready_after": 0.1, "ready_when": ready.path, "router_child": True}
    async with start_gateway({"a": {"script": script}}) as gateway, open_page(f"{gateway.url}/ui/#try") as page:
        await say(page, "Hello")
        await expect(page.get_by_role("progressbar", name="load progress")).to_be_visible()
        await expect(page.locator("form.card [role=status]")).to_contain_text("loading a")
        ready.set()
        await expect(page.locator(".text").nth(1)).to_have_text("word0 word1 word2 word3 word4 ")
        await expect(page.locator(".talk details").nth(1)).to_be_hidden()  # the gateway's progress is no thinking


async def test_a_message_sent_before_the_models_are_listed_is_answered(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/") as page:
        listed = anyio.Event()

        async def hold(route: Route) -> None:
            await listed.wait()
            await route.continue_()

        await page.route("**/events", hold)
        await page.goto(f"{gateway.url}/ui/?again#try")
        await say(page, "Hello")
        await expect(page.locator("form.card [role=status]")).to_contain_text("Waiting for the list of models")
        listed.set()
        await expect(page.locator(".text").nth(1)).to_have_text("word0 word1 word2 word3 word4 ")


async def test_a_message_sent_as_the_models_are_listed_is_answered(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/#try") as page:
        held = []
        await page.route("**/events", lambda route: held.append(route))
        await page.goto(f"{gateway.url}/ui/?again#try")
        await page.get_by_label("Message").fill("Hello")
        # The list is known, but what is seen follows a moment later.
        await page.evaluate(
            "import('/ui/store.js').then(({state}) => { Object.assign(state, {version: '1', "
            "models: [{name: 'a', listed: true}]}); document.querySelector('form.composer').requestSubmit(); })"
        )
        await expect(page.locator(".text").nth(1)).to_have_text("word0 word1 word2 word3 word4 ")


async def test_an_answer_is_stopped(start_gateway: StartGateway, open_page: OpenPage) -> None:
    script = {"chunks": 50_000, "chunk_delay": 0.05}
    async with start_gateway({"a": {"script": script}}) as gateway, open_page(f"{gateway.url}/ui/#try") as page:
        await say(page, "Hello")
        await expect(page.locator(".text").nth(1)).to_contain_text("word2")
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_role("list", name="Conversation")).to_contain_text("stopped")
        await expect(page.get_by_role("button", name="Send")).to_be_enabled()
        await gateway.until(lambda: gateway.events("gone"))


async def test_a_new_chat_discards_an_unfinished_answer(start_gateway: StartGateway, open_page: OpenPage) -> None:
    script = {"chunks": 50_000, "chunk_delay": 0.05}
    async with start_gateway({"a": {"script": script}}) as gateway, open_page(f"{gateway.url}/ui/#try") as page:
        sent: list[Any] = []
        page.on("request", lambda asked: "/chat/" in asked.url and sent.append(asked.post_data_json["messages"]))
        await say(page, "Hello")
        await expect(page.locator(".text").nth(1)).to_contain_text("word2")
        await page.get_by_role("button", name="New chat").click()
        await expect(page.get_by_role("button", name="Send")).to_be_enabled()
        await gateway.until(lambda: gateway.events("gone"))
        await say(page, "And now?")
        await expect(page.locator(".text").nth(1)).to_contain_text("word2")
        assert sent[-1] == [{"role": "user", "content": "And now?"}]
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_role("list", name="Conversation")).to_contain_text("stopped")


async def test_an_error_shows_the_gateways_message(start_gateway: StartGateway, open_page: OpenPage) -> None:
    script = {"exit_code": 1, "stderr": "error: no such architecture\n"}
    async with (
        start_gateway({"a": {"script": script}}) as gateway,
        open_page(f"{gateway.url}/ui/#try", complains=True) as page,
    ):
        await say(page, "Hello")
        await expect(page.get_by_role("alert")).to_contain_text("a could not be loaded on local")


async def test_a_tool_call_is_shown(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}}) as gateway, open_page(f"{gateway.url}/ui/#try") as page:
        call = (
            '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c1","type":"function",'
            '"function":{"name":"current_time","arguments":"{\\"zone\\": "}}]}}]}'
        )
        rest = '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\"UTC\\"}"}}]}}]}'
        answer = f"data: {call}\n\ndata: {rest}\n\ndata: [DONE]\n\n"
        sent = []

        async def play(route, request):  # type: ignore[no-untyped-def]  # playwright's own types
            sent.append(request.post_data_json)
            await route.fulfill(status=200, content_type="text/event-stream", body=answer)

        await page.route("**/v1/chat/completions", play)
        await page.get_by_label("Offer a tool").check()
        await say(page, "What time is it?")
        await expect(page.get_by_label("tool call")).to_have_text('current_time({"zone": "UTC"})')
    assert sent[0]["tools"][0]["function"]["name"] == "current_time"


async def test_the_stop_button_stays_in_place_while_the_answer_grows(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    script = {"chunks": 50_000, "chunk_delay": 0.01, "text": "line{}\n"}
    async with (
        start_gateway({"a": {"script": script}}) as gateway,
        open_page(f"{gateway.url}/ui/#try", viewport={"width": 375, "height": 740}) as page,
    ):
        await say(page, "Hello")
        stop, words = page.get_by_role("button", name="Stop"), page.locator(".text").nth(1)
        await expect(words).to_contain_text("line50")
        before = await stop.bounding_box()
        await expect(words).to_contain_text("line90")
        assert await stop.bounding_box() == pytest.approx(before, abs=1)  # scrolling ends at whole pixels
        assert await page.evaluate("scrollY") > 100  # what is being said is followed
        await stop.click()
        await expect(page.get_by_role("list", name="Conversation")).to_contain_text("stopped")
