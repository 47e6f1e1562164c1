"""Switches on the page: one in progress stays, and each that has ended is listed once."""

from __future__ import annotations

import msgspec
import pytest
from browser.conftest import OpenPage
from playwright.async_api import Route, expect
from system.running_gateway import StartGateway

from hostler.adapters import sse
from hostler.gateway.events import SwitchChanged
from hostler.supervisor.contract import FirstAnswer, SwitchMoved

pytestmark = pytest.mark.anyio


async def test_a_first_answer_belongs_to_its_switch_and_leaves_the_next_one_alone(
    start_gateway: StartGateway, open_page: OpenPage
) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway, open_page(f"{gateway.url}/ui/#switching") as page:
        end = SwitchMoved(id="1", model="a", phase="ready", elapsed_s=2.0)
        answered = msgspec.structs.replace(end, first_answer=FirstAnswer(prompt=900, cached=840))
        switches = [end, SwitchMoved(id="2", model="b", phase="draining", from_models=("a",)), answered]
        events = [sse.event(msgspec.json.encode(await gateway.status()), "snapshot")]
        for each in switches:
            events.append(sse.event(msgspec.json.encode(SwitchChanged(backend="local", switch=each)), "switch"))
        held: list[Route] = []

        async def play(route: Route) -> None:
            held.append(route)
            if len(held) == 1:  # the page connects again at the end, and waits
                await route.fulfill(content_type="text/event-stream", body=b"".join(events))

        await page.route("**/events", play)
        await page.reload()
        ended = page.get_by_role("region", name="Recent switches").get_by_role("row").filter(has_text="ready")
        await expect(ended).to_have_count(1)
        await expect(ended).to_contain_text("60 of 900")
        await expect(page.get_by_role("heading", name="a → b")).to_be_visible()
