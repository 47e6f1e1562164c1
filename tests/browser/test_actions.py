"""The actions of an operator on the dashboard: switch, unload, pin, cancel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from browser.conftest import OpenPage
from fakes.flag_file import FlagFile
from fakes.ports import free_port
from fakes.tcp_proxy import proxy_to
from playwright.async_api import Locator, Page, Route, expect
from system.running_gateway import StartGateway, first_token

pytestmark = pytest.mark.anyio

SLOW = {"ready_after": 0.2, "router_child": True}
TALKATIVE = {"chunks": 50_000, "chunk_delay": 0.05}

Flags = Callable[[str], FlagFile]


def model(page: Page, name: str) -> Locator:
    """The box of a model."""
    return page.locator(".models > li").filter(has=page.get_by_role("heading", name=name, exact=True))


async def test_a_switch_is_shown_from_start_to_end(
    start_gateway: StartGateway, open_page: OpenPage, flags: Flags
) -> None:
    ready = flags("ready")
    async with start_gateway({"a": {}, "b": {"script": {**SLOW, "ready_when": ready.path}}}) as gateway:
        await gateway.chat("a")
        async with open_page(f"{gateway.url}/ui/") as page:
            await expect(model(page, "a")).to_contain_text("ready")
            await page.get_by_role("button", name="Switch to b").click()
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text("a will be unloaded on local")
            await dialog.get_by_role("button", name="Switch now").click()
            await page.get_by_role("link", name="Switching").click()
            await expect(page.get_by_role("heading", name="a → b")).to_be_visible()
            await expect(page.locator(".phases [data-state=current]")).to_have_text("loading")
            ready.set()
            last = page.get_by_role("region", name="Recent switches").get_by_role("row").nth(1)
            await expect(last).to_contain_text("b")
            await expect(last).to_contain_text("ready")
            await page.get_by_role("link", name="Now").click()
            await expect(model(page, "b")).to_contain_text("ready")
            await expect(model(page, "a")).to_contain_text("not loaded")
    assert gateway.starts() == ["a", "b"]


async def test_a_forecast_is_shown_without_a_switch(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with (
        start_gateway({"a": {"script": TALKATIVE}, "b": {}}) as gateway,
        gateway.stream("a"),
        open_page(f"{gateway.url}/ui/") as page,
    ):
        await page.get_by_role("button", name="Forecast loading b").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("1 answer in progress will finish first")
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)
        await expect(model(page, "a")).to_contain_text("1 of 1")
    assert gateway.starts() == ["a"]


async def test_unloading_a_busy_model_asks_how(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {"script": TALKATIVE}}) as gateway, gateway.stream("a") as answer:
        async with open_page(f"{gateway.url}/ui/") as page:
            await expect(model(page, "a")).to_contain_text("1 of 1")
            await page.get_by_role("button", name="Unload a").click()
            await page.get_by_role("dialog").get_by_role("button", name="Stop them").click()
            await expect(model(page, "a")).to_contain_text("not loaded")
        assert "unloaded on request" in "".join([part async for part in answer.aiter_text()])


async def test_a_request_in_flight_is_shown_and_cancelled(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {"script": TALKATIVE}}) as gateway:
        async with open_page(f"{gateway.url}/ui/#flow") as page, anyio.create_task_group() as tasks:
            answers = []

            async def ask() -> None:
                async with gateway.stream("a") as answer:
                    answers.append("".join([part async for part in answer.aiter_text()]))

            tasks.start_soon(ask)
            flying = page.get_by_role("list", name="Requests in flight")
            await expect(flying).to_contain_text("generating")
            await flying.get_by_role("button", name="Cancel").click()
            last = page.get_by_role("list", name="Recent requests").get_by_role("listitem")
            await expect(last).to_have_count(1)
            await expect(last).to_contain_text("cancelled")
            await expect(flying.get_by_role("listitem")).to_have_count(0)
        assert "cancelled by an operator" in answers[0]


async def test_a_request_expands_to_its_timing(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}, "b": {"script": SLOW}}) as gateway:
        await gateway.chat("a")
        await gateway.chat("b")
        async with open_page(f"{gateway.url}/ui/#flow") as page:
            first = page.get_by_role("list", name="Recent requests").get_by_role("listitem").first
            await first.locator("summary").click()
            way = re.compile(r"queued .*switching .*prefill .*generation")
            await expect(first.get_by_role("img")).to_have_accessible_name(way)
            await expect(first).to_contain_text("b on local")
            await expect(first).to_contain_text("first in the chain")


async def test_waiting_requests_are_listed_in_the_order_of_service(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    profiles = {"a": {"script": TALKATIVE}, "b": {}}
    async with start_gateway(profiles) as gateway, gateway.stream("a"), anyio.create_task_group() as tasks:
        async with open_page(f"{gateway.url}/ui/#switching") as page:
            for _ in range(2):
                tasks.start_soon(gateway.chat, "b")
            queue = page.get_by_role("region", name="Queue").locator("tbody tr")
            await expect(queue).to_have_count(2)
            await expect(queue.first).to_contain_text("b")
            await queue.first.get_by_role("button", name="Cancel").click()
            await expect(queue).to_have_count(1)
        tasks.cancel_scope.cancel()


async def test_a_lost_connection_is_shown_and_restored(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with (
        start_gateway({"a": {}}) as gateway,
        proxy_to(gateway.url) as wire,
        open_page(f"http://127.0.0.1:{wire.port}/ui/", complains=True) as page,
    ):
        link = page.locator("#link")
        await expect(link).to_have_text("live")
        await wire.cut()
        await expect(link).to_contain_text("connection lost")
        await gateway.chat("a")
        wire.restore()
        await expect(link).to_have_text("live")
        await expect(model(page, "a")).to_contain_text("ready")


async def test_an_open_circuit_breaker_is_shown(start_gateway: StartGateway, open_page: OpenPage) -> None:
    dead = {"kind": "openai", "url": f"http://127.0.0.1:{free_port()}/v1", "models": {"m": "m"}}
    probing = {"every_s": 60, "down_every_s": 60}
    async with (
        start_gateway({"a": {}}, backends={"dead": dead}, gateway={"probing": probing}) as gateway,
        open_page(f"{gateway.url}/ui/#chain") as page,
    ):
        hop = page.locator(".hops > li").filter(has=page.get_by_role("heading", name="dead", exact=True))
        await expect(hop).to_contain_text("openai")
        for _ in range(3):
            await gateway.chat("m")
        await expect(hop).to_contain_text("circuit open")
        await expect(hop).to_contain_text("unreachable")
        await expect(page.get_by_text(re.compile("dead: in use → circuit open"))).to_be_visible()
        local = page.locator(".hops > li").first
        await expect(local).to_contain_text("in use")


async def test_what_happens_while_the_history_loads_is_not_lost(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    dead = {"kind": "openai", "url": f"http://127.0.0.1:{free_port()}/v1", "models": {"m": "m"}}
    probing = {"every_s": 60, "down_every_s": 60}
    async with (
        start_gateway({"a": {}}, backends={"dead": dead}, gateway={"probing": probing}) as gateway,
        open_page(f"{gateway.url}/ui/#chain") as page,
    ):
        await gateway.chat("a")
        loading, over = anyio.Event(), anyio.Event()
        asked: list[str] = []

        async def answer_late(route: Route) -> None:
            response = await route.fetch()
            asked.append(route.request.url)
            if len(asked) == 3:
                loading.set()
            await over.wait()
            await route.fulfill(response=response)

        await page.goto("about:blank")
        await page.route("**/admin/history?*", answer_late)
        await page.goto(f"{gateway.url}/ui/#chain")
        with anyio.fail_after(30):
            await loading.wait()
        for _ in range(3):
            await gateway.chat("m")
        hop = page.locator(".hops > li").filter(has=page.get_by_role("heading", name="dead", exact=True))
        await expect(hop).to_contain_text("circuit open")
        over.set()
        await page.get_by_role("link", name="Switching").click()
        await expect(page.get_by_role("row").filter(has_text="ready")).to_have_count(1)  # from the history
        await page.get_by_role("link", name="Chain").click()
        change = page.get_by_text(re.compile("dead: in use → circuit open"))
        await expect(change).to_be_visible()
        await expect(change).to_have_count(1)


async def test_a_model_is_pinned_and_unpinned(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with (
        start_gateway({"a": {"ttl_s": 600}, "b": {}}) as gateway,
        open_page(f"{gateway.url}/ui/") as page,
        open_page(f"{gateway.url}/ui/") as other,
    ):
        await gateway.chat("a")
        await page.get_by_role("button", name="Pin a", exact=True).click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("local runs one model at a time")
        await dialog.get_by_role("button", name="Pin it").click()
        for each in (page, other):
            await expect(model(each, "a").locator(".badge", has_text="pinned")).to_be_visible()
            await expect(model(each, "a")).to_contain_text("never (pinned)")
        await gateway.chat("b")
        await expect(page.locator(".models > li[data-state=ready]")).to_have_count(2)
        await page.get_by_role("button", name="Unpin a", exact=True).click()
        await expect(model(other, "a").locator(".badge", has_text="pinned")).to_be_hidden()
        await expect(model(other, "a")).not_to_contain_text("never")


async def test_the_chain_shows_failures_and_their_time(
    start_gateway: StartGateway, open_page: OpenPage, tmp_path: Path
) -> None:
    port = free_port()
    backends = {
        "away": {"kind": "openai", "url": f"http://127.0.0.1:{port}/v1", "models": {"cloudy": "x/y"}, "local": False}
    }
    spending = {"daily_limit": 2.5, "file": str(tmp_path / "spending.json")}
    more = {"gateway": {"spending": spending}, "breaker": {"failures": 1, "open_s": 120}}
    async with start_gateway({"a": {}, "bad": {"script": {"exit_code": 1}}}, backends=backends, **more) as gateway:
        await gateway.chat("a")
        await gateway.chat("cloudy")
        async with open_page(f"{gateway.url}/ui/#chain") as page:
            local, away = page.locator(".hops > li").first, page.locator(".hops > li").nth(1)
            await expect(away).to_contain_text("circuit open")
            await expect(away.get_by_role("list", name="Failures by kind")).to_contain_text("1 × unreachable")
            await expect(away.locator(".lane svg").first).to_have_attribute(
                "aria-label", re.compile("backend: circuit open for 1 of the last 60 minutes")
            )
            await expect(away.locator(".lane svg").nth(1)).to_have_attribute("aria-label", re.compile("^x/y: "))
            await expect(local.locator(".lane svg").first).to_have_attribute("aria-label", re.compile("in use for the"))
            await expect(local.get_by_role("list", name="Failures by kind")).to_be_hidden()
            await expect(page.locator(".spent")).to_have_text("Today: $0 of $2.50")


async def test_a_request_in_flight_shows_what_it_waits_for(
    start_gateway: StartGateway, open_page: OpenPage, flags: Flags
) -> None:
    ready = flags("ready")
    profiles = {"a": {"script": TALKATIVE}, "b": {"script": {"ready_when": ready.path}}}
    async with (
        start_gateway(profiles) as gateway,
        gateway.stream("a") as answer,
        open_page(f"{gateway.url}/ui/") as page,
        anyio.create_task_group() as tasks,
    ):
        await first_token(answer)
        tasks.start_soon(gateway.chat, "b")
        await page.get_by_role("link", name="1 request", exact=True).click()
        flying = page.get_by_role("list", name="Requests in flight").get_by_role("listitem")
        waiting = flying.filter(has_text="b")
        await waiting.locator("summary").click()
        bar = waiting.get_by_role("img")
        await expect(bar).to_have_accessible_name(re.compile(r"queued [1-9].* s, switching 0 s, prefill 0 s"))
        await flying.filter(has_text="a").first.get_by_role("button", name="Cancel").click()
        await expect(bar).to_have_accessible_name(re.compile(r"switching [1-9].* s, prefill 0 s"))
        await page.get_by_role("link", name="Now").click()
        await page.get_by_role("link", name="1", exact=True).click()
        await expect(page.get_by_role("region", name="Queue")).to_contain_text("b")
        ready.set()


async def test_a_leased_model_is_shown_and_its_lease_ended(start_gateway: StartGateway, open_page: OpenPage) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        leased = await gateway.http.post("/admin/leases", json={"model": "a", "for_s": 600, "holder": "ann"})
        assert leased.status_code in (200, 201), leased.text
        async with open_page(f"{gateway.url}/ui/") as page:
            await expect(model(page, "a").locator(".badge", has_text="leased")).to_be_visible()
            await expect(model(page, "a")).to_contain_text("(leased to ann)")
            await expect(page.get_by_role("button", name="End the lease of b")).to_be_hidden()
            await page.get_by_role("button", name="End the lease of a").click()
            await expect(page.get_by_text("The lease of a has ended.")).to_be_visible()
            await expect(model(page, "a").locator(".badge", has_text="leased")).to_be_hidden()
            await expect(page.get_by_role("button", name="End the lease of a")).to_be_hidden()
        assert (await gateway.http.get("/admin/leases")).json()["leases"] == []
