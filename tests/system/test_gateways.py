"""Several gateways before one host: one queue, one switch at a time, no more requests than slots, whichever dies."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.tcp_proxy import TcpProxy, proxy_to
from system.several_gateways import GatewayProgram, counts, installation, words

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

BUSY = {"script": {"chunks": 8, "chunk_delay": 0.01, "queue": False}}
ENDLESS = {"script": {"chunks": 100_000, "chunk_delay": 0.02}}


async def ask(
    answers: list[httpx.Response], gateway: GatewayProgram, model: str, client: str = "anna", **more: Any
) -> None:
    answers.append(await gateway.chat(model, client, **more))


async def test_the_gateways_share_one_queue_and_one_host(tmp_path: Path) -> None:
    profiles = {"a": {**BUSY, "parallel": 2}, "b": {**BUSY, "parallel": 2}}
    limits = {"queue": {"max_waiting": 200}, "switching": {"patience_s": 0.3}}
    async with installation(tmp_path / "host", profiles, gateways=3, settings=limits) as all_of_it:
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            for number in range(90):
                gateway = all_of_it.gateways[number % 3]
                clients.start_soon(ask, answers, gateway, "ab"[number % 2], ("anna", "bob", "carol")[number % 3])
        assert counts(answers) == {200: 90}
        assert all_of_it.most_running("a", words=8) <= 2
        assert all_of_it.most_running("b", words=8) <= 2
        assert not all_of_it.switches_overlap()
        assert len(all_of_it.starts()) < 20


async def test_every_gateway_shows_the_whole_queue(tmp_path: Path) -> None:
    flag = tmp_path / "go"
    profiles = {"a": {"script": {"answer_when": str(flag)}}}
    async with installation(tmp_path / "host", profiles) as all_of_it:
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            for gateway in (one, one, two, two):
                clients.start_soon(ask, answers, gateway, "a")
            await one.until(waiting=3, serving=1)
            await two.until(waiting=3, serving=1)
            queue = (await two.host())["queue"]
            assert [each["position"] for each in queue] == [1, 2, 3]
            flag.touch()
        assert counts(answers) == {200: 4}
        await one.until(waiting=0, serving=0)


async def test_clients_of_different_gateways_take_turns(tmp_path: Path) -> None:
    flag = tmp_path / "go"
    profiles = {"a": {"script": {"answer_when": str(flag), "chunks": 1}}}
    async with installation(tmp_path / "host", profiles, settings={"queue": {"max_waiting": 50}}) as all_of_it:
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []
        order: list[str] = []

        async def client(gateway: GatewayProgram, name: str) -> None:
            await ask(answers, gateway, "a", name)
            order.append(name)

        async with anyio.create_task_group() as clients:
            clients.start_soon(client, one, "carol")
            await one.until(serving=1)
            for number in range(8):
                clients.start_soon(client, one, "anna")
                await one.until(waiting=number + 1)
            for number in range(2):
                clients.start_soon(client, two, "bob")
                await two.until(waiting=9 + number)
            flag.touch()
        # Bob came last, at another gateway, and waits for about one request of Anna's before each of his.
        assert max(position for position, name in enumerate(order) if name == "bob") <= 6, order


async def test_the_limits_of_the_supervisors_own_file_win(tmp_path: Path) -> None:
    flag = tmp_path / "go"
    profiles = {"a": {"script": {"answer_when": str(flag)}}}
    own, others = {"queue": {"max_waiting": 1}}, {"queue": {"max_waiting": 9}}
    async with installation(tmp_path / "host", profiles, host=own, settings=others) as all_of_it:
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            clients.start_soon(ask, answers, one, "a")
            await one.until(serving=1)
            clients.start_soon(ask, answers, two, "a")
            await one.until(waiting=1)  # as the host says
            refused = await one.chat("a")
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            flag.touch()
        assert counts(answers) == {200: 2}


async def test_a_killed_gateway_frees_its_place_and_its_slot(tmp_path: Path) -> None:
    async with installation(tmp_path / "host", {"a": ENDLESS, "b": {}}) as all_of_it:
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []

        async def lost(model: str) -> None:
            with pytest.raises(httpx.TransportError):
                await one.chat(model, stream=True)

        async with anyio.create_task_group() as clients:
            clients.start_soon(lost, "a")
            await one.until(serving=1)
            clients.start_soon(lost, "b")
            await one.until(waiting=1)
            clients.start_soon(ask, answers, two, "b")
            await two.until(waiting=2)
            await one.kill()
        assert counts(answers) == {200: 1}
        await two.until(waiting=0, serving=0)
        assert all_of_it.most_running("a", words=100_000) == 1
        assert not all_of_it.switches_overlap()
        # Nobody waits for it any more: it was not loaded twice.
        assert all_of_it.starts() == ["a", "b"]


async def test_a_suspended_gateway_keeps_no_one_else_waiting(tmp_path: Path) -> None:
    profiles = {"a": {"script": {"chunks": 40, "chunk_delay": 0.02}}}
    async with installation(tmp_path / "host", profiles) as all_of_it:
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            clients.start_soon(ask, answers, one, "a")
            await one.until(serving=1)
            clients.start_soon(ask, answers, one, "a")
            await one.until(waiting=1)
            one.signal(signal.SIGSTOP)
            assert (await two.chat("a")).status_code == 200
            one.signal(signal.SIGCONT)
        # The first one was answered by its engine meanwhile, the second one is asked for again.
        assert counts(answers) == {200: 2}
        assert all_of_it.most_running("a", words=40) == 1


async def until_connected(gateway: GatewayProgram, proxy: TcpProxy) -> None:
    proxy.restore()
    await gateway.until(reachable=True)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_gateway_cut_off_from_the_host_holds_its_slot_until_its_answer_ends(
    tmp_path: Path, silent: bool
) -> None:
    flag = tmp_path / "last"
    profiles = {"a": {"script": {"last_when": str(flag), "chunk_delay": 0.005}}}
    async with (
        proxy_to("http://127.0.0.1:0") as proxy,
        installation(tmp_path / "host", profiles, proxy=proxy) as all_of_it,
    ):
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            clients.start_soon(ask, answers, one, "a")
            await all_of_it.until(lambda: all_of_it.requests("a"))
            if silent:
                proxy.hold()
            else:
                await proxy.cut()
            await one.until(reachable=False)
            # Its engine still works for the first one, over another cable.
            clients.start_soon(ask, answers, two, "a")
            await two.until(waiting=1)
            assert len(all_of_it.requests("a")) == 1
            flag.touch()
        assert counts(answers) == {200: 2}
        assert all_of_it.most_running("a") == 1
        await until_connected(one, proxy)
        assert (await one.chat("a")).status_code == 200


async def test_a_killed_supervisor_fails_what_waits_for_it_and_serves_all_gateways_again(tmp_path: Path) -> None:
    flag = tmp_path / "go"
    profiles = {"a": {"parallel": 2, "script": {"answer_when": str(flag), "chunks": 1}}}
    async with installation(tmp_path / "host", profiles, settings={"queue": {"max_waiting": 99}}) as all_of_it:
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            for number in range(12):
                clients.start_soon(ask, answers, all_of_it.gateways[number % 2], "a")
            for gateway in all_of_it.gateways:
                await gateway.until(serving=2, waiting=10)
            await all_of_it.supervisor.kill()
        assert {answer.status_code for answer in answers} <= {502, 503} and len(answers) == 12
        assert sum("pc cannot be reached" in answer.text for answer in answers) >= 10, [each.text for each in answers]
        await all_of_it.supervisor.start()
        flag.touch()
        again: list[httpx.Response] = []
        for gateway in all_of_it.gateways:
            await gateway.until(reachable=True)
        async with anyio.create_task_group() as clients:
            for number in range(12):
                clients.start_soon(ask, again, all_of_it.gateways[number % 2], "a")
        assert counts(again) == {200: 12}
        assert all_of_it.most_running("a", words=1) <= 2


async def test_a_restarted_supervisor_finishes_its_answers_and_new_requests_wait_for_it(tmp_path: Path) -> None:
    flag = tmp_path / "last"
    profiles = {"a": {"script": {"last_when": str(flag), "chunk_delay": 0.005}}}
    async with installation(tmp_path / "host", profiles, gateways=1) as all_of_it:
        [gateway] = all_of_it.gateways
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as clients:
            clients.start_soon(ask, answers, gateway, "a")
            await gateway.until(serving=1)
            all_of_it.supervisor.signal(signal.SIGTERM)
            await gateway.until(reachable=False)
            clients.start_soon(ask, answers, gateway, "a")
            flag.touch()
            await all_of_it.supervisor.stop()
            await all_of_it.supervisor.start()
        assert counts(answers) == {200: 2}
        assert ["word4" in answer.text for answer in answers] == [True, True]


async def test_gateways_started_in_the_same_second_work_side_by_side(tmp_path: Path) -> None:
    limits = {"queue": {"max_waiting": 50}}
    async with installation(tmp_path / "host", {"a": BUSY}, settings=limits) as all_of_it:
        for gateway in all_of_it.gateways:
            await gateway.stop()
        async with anyio.create_task_group() as starts:
            for gateway in all_of_it.gateways:
                starts.start_soon(gateway.start)
        answers: list[httpx.Response] = []
        for gateway in all_of_it.gateways:
            gateway.http.base_url = httpx.URL(gateway.running.address)
            await gateway.until(reachable=True)
        async with anyio.create_task_group() as clients:
            for number in range(12):
                clients.start_soon(ask, answers, all_of_it.gateways[number % 2], "a", ("anna", "bob")[number % 2])
        assert counts(answers) == {200: 12}
        assert all_of_it.most_running("a", words=8) == 1


async def test_a_stream_of_a_gateway_is_untouched_by_the_death_of_another(tmp_path: Path) -> None:
    profiles = {"a": {"parallel": 2, "script": {"chunks": 60, "chunk_delay": 0.02}}}
    async with installation(tmp_path / "host", profiles) as all_of_it:
        one, two = all_of_it.gateways
        answers: list[httpx.Response] = []

        async def lost() -> None:
            with pytest.raises(httpx.TransportError):
                await one.chat("a", stream=True)

        async with anyio.create_task_group() as clients:
            clients.start_soon(lost)
            clients.start_soon(lambda: ask(answers, two, "a", stream=True))
            await two.until(serving=2)
            await one.kill()
        assert words(answers[0]).split()[-1] == "word59"
        await two.until(serving=0)


async def test_gateways_that_come_and_go_break_nothing(tmp_path: Path) -> None:
    profiles = {"a": {**BUSY, "parallel": 2}, "b": {**BUSY, "parallel": 2}}
    limits = {"queue": {"max_waiting": 200}, "switching": {"patience_s": 0.3}}
    async with installation(tmp_path / "host", profiles, gateways=3, settings=limits) as all_of_it:
        steady, frozen, killed = all_of_it.gateways
        answers: dict[GatewayProgram, list[httpx.Response]] = {gateway: [] for gateway in all_of_it.gateways}
        stopping = anyio.Event()

        async def client(gateway: GatewayProgram, name: str) -> None:
            number = 0
            while not stopping.is_set():
                number += 1
                try:
                    answers[gateway].append(await gateway.chat("ab"[number % 2], name, stream=True))
                except httpx.TransportError:
                    assert gateway is killed
                    await anyio.sleep(0.1)

        async def answered(gateway: GatewayProgram) -> None:
            known = len(answers[gateway])
            await all_of_it.until(lambda: len(answers[gateway]) >= known + 3, seconds=60)

        async with anyio.create_task_group() as clients:
            for gateway in all_of_it.gateways:
                for name in ("anna", "bob"):
                    clients.start_soon(client, gateway, name)
            for gateway in all_of_it.gateways:
                await answered(gateway)
            for silences in (1, 2):
                frozen.signal(signal.SIGSTOP)
                await killed.kill()
                await all_of_it.until(
                    lambda silences=silences: all_of_it.supervisor.log.count("silent for 3 s") >= silences, seconds=60
                )
                await answered(steady)
                frozen.signal(signal.SIGCONT)
                await killed.start()
                killed.http.base_url = httpx.URL(killed.running.address)
                for gateway in all_of_it.gateways:
                    await answered(gateway)
            stopping.set()
        for gateway in (steady, frozen):
            assert counts(answers[gateway]) == {200: len(answers[gateway])}
            assert {words(answer).split()[-1] for answer in answers[gateway]} == {"word7"}
        assert all_of_it.most_running("a", words=8) <= 2
        assert all_of_it.most_running("b", words=8) <= 2
        assert not all_of_it.switches_overlap()
        await steady.until(waiting=0, serving=0)
