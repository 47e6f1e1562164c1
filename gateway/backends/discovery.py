"""Asks backends without a supervisor which models they have, again and again, and when a name is unknown.

The last list of a backend stays while it is unreachable. One question at a time for each backend.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping

import anyio
import msgspec

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import GatewayError
from hostler.adapters.remote_models import (
    MAX_ANSWER,
    ListUnavailable,
    ModelReport,
    Query,
    QueryAnswer,
    RemoteModel,
)
from hostler.gateway.backends.registry import with_prefix
from hostler.gateway.backends.transport import Backend, Timeouts
from hostler.gateway.gateway_settings import DiscoverySettings

logger = logging.getLogger(__name__)

#: Remote backends are asked less often than local ones, by this factor.
REMOTE_FACTOR = 20.0
#: The pause after a backend gave no list, in seconds; it doubles up to the usual interval.
_RETRY_S = 2.0
#: Questions about single models that are open at a time, for each backend.
_PARALLEL = 4
#: The time for one answer, and for all of a discovery, in seconds.
_ANSWER_S, _TOTAL_S = 10.0, 60.0
#: A name that is unknown has a backend asked again, unless it was asked this short a time ago, in seconds.
_FRESH_S = 3.0
#: The longest that a request waits for that, in seconds.
_WAIT_S = 3.0

#: The problem of a list that led to an unforeseen error, which is in the log.
_UNFORESEEN = "its list of models could not be read; the log has the error"

#: Receives the models of a backend when they have changed.
OnModels = Callable[[str, tuple[RemoteModel, ...]], None]


class DiscoveryView(msgspec.Struct, frozen=True, kw_only=True):
    """The last discovery at a backend. `at` is when it answered, in seconds since the epoch, `None` if it never has.

    `problem` is why it gave no list the last time. `prefix` is the path of OpenAI's routes there, where it had to be found
    out.
    """

    models: tuple[RemoteModel, ...] = ()
    at: float | None = None
    problem: str | None = None
    prefix: str | None = None


class BackendDiscovery:
    """The models of one backend. `asked` is set once the first attempt has ended."""

    def __init__(
        self,
        name: str,
        backends: MutableMapping[str, Backend],
        every_s: float,
        on_models: OnModels,
        clock: Callable[[], float],
        *,
        known: tuple[RemoteModel, ...] = (),
    ) -> None:
        self._name = name
        self._backends = backends
        self._every_s = every_s
        self._on_models = on_models
        self._clock = clock
        self._requested = anyio.Event()
        self._ended = anyio.Event()
        self._ended_at = float("-inf")
        self._pause_s = _RETRY_S
        self.view = DiscoveryView(models=known)
        self.asked = anyio.Event()

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            found = await self._attempt()
            self._pause_s = self._every_s if found else min(self._every_s, 2 * self._pause_s)
            self._ended_at = self._clock()
            self.asked.set()
            ended, self._ended = self._ended, anyio.Event()
            ended.set()
            with anyio.move_on_after(self._pause_s):
                await self._requested.wait()
            self._requested = anyio.Event()

    async def refresh(self) -> bool:
        """Ask again, unless that was a moment ago or failed. Returns whether the backend was asked."""
        if self.view.problem is not None or self._clock() - self._ended_at < _FRESH_S:
            return False
        self._requested.set()
        await self._ended.wait()
        return True

    def request(self) -> None:
        """Ask soon: the backend may have been started."""
        if self.view.problem is not None:
            self._requested.set()

    async def _attempt(self) -> bool:
        """Ask; an unforeseen error ends neither the gateway nor the discovery of other backends."""
        try:
            return await self._ask()
        except Exception:
            if self.view.problem != _UNFORESEEN:
                logger.exception("%s: cannot read its list of models", self._name)
            self.view = msgspec.structs.replace(self.view, problem=_UNFORESEEN)
            return False

    async def _ask(self) -> bool:
        backend = self._backends[self._name]
        try:
            with anyio.fail_after(_TOTAL_S):
                report = await ask_models(backend, {model.name: model for model in self.view.models})
        except (ListUnavailable, TimeoutError) as error:
            problem = error.message if isinstance(error, ListUnavailable) else "did not list its models in time"
            if problem != self.view.problem:
                logger.info("%s: no list of models: %s", self._name, problem)
            self.view = msgspec.structs.replace(self.view, problem=problem)
            return False
        if report.prefix is not None and report.prefix != self.view.prefix:
            self._backends[self._name] = with_prefix(backend, report.prefix, supposed=True)
        before, first = self.view.models, self.view.at is None
        # By name, so that a server's changing order is no change.
        models = tuple(sorted(report.models, key=lambda model: model.name))
        self.view = DiscoveryView(models=models, at=time.time(), prefix=report.prefix)
        if first or models != before:
            if first or len(models) != len(before):
                logger.info("%s: has %d models", self._name, len(models))
            self._on_models(self._name, models)
        return True


class ModelDiscovery:
    """The discoveries of all backends. `known` are the models of a backend from an earlier run."""

    def __init__(
        self,
        backends: MutableMapping[str, Backend],
        settings: DiscoverySettings,
        on_models: OnModels,
        clock: Callable[[], float],
        *,
        known: Mapping[str, tuple[RemoteModel, ...]] | None = None,
    ) -> None:
        self._discoveries = {
            name: BackendDiscovery(
                name,
                backends,
                settings.every_s if backend.local else settings.every_s * REMOTE_FACTOR,
                on_models,
                clock,
                known=(known or {}).get(name, ()),
            )
            for name, backend in backends.items()
            if backend.endpoint is not None
        }

    async def run(self) -> None:
        """Ask until cancelled."""
        async with anyio.create_task_group() as tasks:
            for discovery in self._discoveries.values():
                tasks.start_soon(discovery.run)

    async def first(self) -> None:
        """Wait until every backend was asked once."""
        for discovery in self._discoveries.values():
            await discovery.asked.wait()

    async def refresh(self) -> bool:
        """Ask again for a name that is unknown. Returns whether anything was asked; waits only for a moment."""
        asked = False

        async def ask(discovery: BackendDiscovery) -> None:
            nonlocal asked
            asked = await discovery.refresh() or asked

        with anyio.move_on_after(_WAIT_S):
            async with anyio.create_task_group() as tasks:
                for discovery in self._discoveries.values():
                    tasks.start_soon(ask, discovery)
        return asked

    def request(self, backend: str) -> None:
        """Ask a backend soon."""
        if backend in self._discoveries:
            self._discoveries[backend].request()

    @property
    def views(self) -> Mapping[str, DiscoveryView]:
        """The last discovery at each backend."""
        return {name: discovery.view for name, discovery in self._discoveries.items()}


async def ask_models(
    backend: Backend, known: Mapping[str, RemoteModel], *, max_answer: int = MAX_ANSWER
) -> ModelReport:
    """Ask a backend which models it has; longer answers than `max_answer` bytes count as none. Raises `ListUnavailable`."""
    steps = backend.upstream.discover(known)
    try:
        queries = next(steps)
        while True:
            answers = await _answers(backend, queries, max_answer)
            queries = steps.send(answers)
    except StopIteration as end:
        report: ModelReport = end.value
        return report
    finally:
        steps.close()


async def _answers(backend: Backend, queries: tuple[Query, ...], max_answer: int) -> tuple[QueryAnswer, ...]:
    answers = [QueryAnswer()] * len(queries)
    limit = anyio.CapacityLimiter(_PARALLEL)

    async def ask(index: int) -> None:
        async with limit:
            answers[index] = await _answer(backend, queries[index], max_answer)

    async with anyio.create_task_group() as tasks:
        for index in range(len(queries)):
            tasks.start_soon(ask, index)
    return tuple(answers)


async def _answer(backend: Backend, query: Query, max_answer: int) -> QueryAnswer:
    assert backend.endpoint is not None, "only supervised backends have no endpoint of their own"
    request = WireRequest(
        method=query.method, path=query.path, body=query.body, headers=(*query.headers, *backend.headers)
    )
    timeouts = Timeouts(connect_s=backend.timeouts.connect_s, first_byte_s=_ANSWER_S, between_bytes_s=_ANSWER_S)
    try:
        async with backend.transport.send(request, backend.endpoint, timeouts) as answer:
            body = await answer.read(max_answer + 1)
            if len(body) > max_answer:
                return QueryAnswer(problem=f"its answer to {query.path} is larger than {max_answer} bytes")
            return QueryAnswer(status=answer.head.status, body=body)
    except GatewayError as error:
        return QueryAnswer(problem=error.log_message)
    except (OSError, ValueError) as error:
        return QueryAnswer(problem=str(error) or type(error).__name__)
