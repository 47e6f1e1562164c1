"""The dashboard of one of several gateways with a common store: the requests of all of them."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from browser.conftest import OpenPage
from browser.test_sections import complaints
from fakes.redis_server import needs_redis, redis_server
from playwright.async_api import expect
from system.running_gateway import remote_supervisor
from system.several_gateways import installation

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180), needs_redis]


async def test_the_page_shows_and_cancels_the_requests_of_all_gateways(open_page: OpenPage, tmp_path: Path) -> None:
    profiles = {"a": {"script": {"chunks": 1000, "chunk_delay": 0.05}}}
    with redis_server(tmp_path / "redis") as server:
        shared = {"store": server.url, "token": "secret"}
        async with (
            installation(tmp_path / "host", profiles, cluster=shared) as all_of_it,
            open_page(f"{all_of_it.gateways[1].running.address}/ui/", complains=True) as page,
            anyio.create_task_group() as tasks,
        ):
            one, two = all_of_it.gateways
            said: list[str] = []
            page.on("dialog", lambda dialog: said.append(dialog.message))
            await page.get_by_label("API key").fill(two.auth()["Authorization"].removeprefix("Bearer "))
            await page.get_by_role("button", name="Log in").click()
            await expect(page.locator("#link")).to_have_text("live")
            await page.get_by_role("link", name="Flow").click()
            # No model of a client's choice becomes a part of the page.
            assert (await one.chat("<img src=x onerror=alert(1)>", "bob")).status_code == 404
            tasks.start_soon(one.chat, "a")
            running = page.get_by_role("list", name="Requests in flight").get_by_role("listitem").first
            await expect(running).to_contain_text("at gateway0")
            await running.get_by_role("button", name="Cancel").click()
            past = page.get_by_role("list", name="Recent requests")
            await expect(past).to_contain_text("<img src=x onerror=alert(1)>")
            await expect(past).to_contain_text("cancelled")
            await expect(past.get_by_text("openai at gateway0")).to_have_count(2)
            assert (await two.chat("none", "carol")).status_code == 404
            await expect(past).to_contain_text("openai at gateway1")
            await page.reload()
            await expect(past.get_by_text("openai at gateway0")).to_have_count(2)
            assert (await complaints(page), said) == ([], [])
            server.kill()
            await expect(page.get_by_role("alert")).to_contain_text("show only their own requests until it is back")


async def test_the_page_shows_hosts_that_only_other_gateways_use(open_page: OpenPage, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server:
        shared = {"store": server.url, "token": "secret"}
        async with (
            remote_supervisor(tmp_path / "attic", {"rare": {}}) as attic,
            installation(tmp_path / "host", {"a": {}}, cluster=shared, gateways=2) as all_of_it,
            open_page(f"{all_of_it.gateways[1].running.address}/ui/", complains=True) as page,
        ):
            one, two = all_of_it.gateways
            await one.restart_with(backends={"attic": attic.backend})
            assert (await one.chat("rare")).status_code == 200
            await page.get_by_label("API key").fill(two.auth()["Authorization"].removeprefix("Bearer "))
            await page.get_by_role("button", name="Log in").click()
            far = page.get_by_role("region", name="Hosts of other gateways")
            await expect(far).to_contain_text("attic")
            await expect(far).to_contain_text("at gateway0")
            await expect(far).to_contain_text("rare ready, 0 of 1 slots in use")
            await one.stop()
            await expect(far).to_be_hidden()
            assert await complaints(page) == []
