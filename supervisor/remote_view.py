"""What a supervisor has last published about its host, with what this gateway has requested and released since then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from hostler.supervisor.contract import ModelStatus, PromptIdentity, State, SwitchMoved
from hostler.supervisor.lease_frames import PlacesFrame, QueueFrame, QueuePlace, ViewFrame
from hostler.supervisor.scheduling.conversations import as_sets, read_before
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.model import ModelPhase
from hostler.supervisor.scheduling.progress import ENDED, KnownSwitch, SwitchSpan
from hostler.supervisor.scheduling.views import (
    NO_OUTLOOK,
    UNAVAILABLE,
    HostOffer,
    ModelView,
    ServiceDistance,
    ServiceOutlook,
    distance_by,
    offer_by,
)

_PHASES: Mapping[State, ModelPhase] = {"ready": "ready", "starting": "loading", "stopping": "stopping"}


class RemoteView:
    """The models, the queue and the switches of one host. Times are by the gateway's clock.

    `others_waiting` and `others_serving` count the requests of other gateways.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: the supervisor cannot be reached."""
        self.models: tuple[ModelView, ...] = ()
        self.queue: tuple[Waiting, ...] = ()
        self.others_waiting = 0
        self.others_serving = 0
        self.switches: dict[str, KnownSwitch] = {}
        self._by_name: dict[str, ModelView] = {}
        self._outlooks: dict[str, ServiceOutlook] = {}
        self._conversations: dict[str, frozenset[int]] = {}
        self._since_view: dict[str, int] = {}
        self._host_load = 0
        self._places: dict[int, tuple[QueuePlace, float]] = {}
        self._switch_spans: dict[str, SwitchSpan] = {}

    # What this gateway does.

    def asked(self, model: str) -> None:
        """A lease was requested from here."""
        self._since_view[model] = self._since_view.get(model, 0) + 1
        self._host_load += 1

    def released(self, model: str) -> None:
        """A lease was released here."""
        self._since_view[model] = self._since_view.get(model, 0) - 1
        self._host_load -= 1

    def settled(self, number: int) -> None:
        """A lease is queued no longer."""
        self._places.pop(number, None)

    # What the supervisor publishes.

    def apply_queue(self, frame: QueueFrame, *, waiting: int, serving: int) -> None:
        """`waiting` and `serving` are this gateway's own requests among those of the frame."""
        self.queue = frame.waiting
        self.others_waiting = max(0, frame.total - waiting)
        self.others_serving = max(0, frame.serving - serving)

    def apply_models(self, frame: ViewFrame, now: float, unseen: Iterable[str] = ()) -> None:
        """`unseen` are the models of leases that were requested from here, and that the supervisor did not know of yet."""
        self.models = tuple(
            each if each.idle_until is None else msgspec.structs.replace(each, idle_until=now + each.idle_until)
            for each in frame.models
        )
        self._by_name = {each.model: each for each in self.models}
        self._outlooks = dict(frame.outlooks)
        self._conversations = as_sets(frame.conversations)
        self._since_view = dict(Counter(unseen))
        self._host_load = sum(each.running + each.waiting for each in self.models) + sum(self._since_view.values())

    def apply_state(self, status: ModelStatus) -> None:
        """A model's process changed; the view that follows says the rest."""
        if (known := self._by_name.get(status.model)) is not None:
            phase = _PHASES.get(status.state, "cold")
            self._by_name[status.model] = msgspec.structs.replace(known, phase=phase)
        before = self._outlooks.get(status.model, NO_OUTLOOK)
        if status.state in ("ready", "starting"):
            steps = 0 if status.state == "ready" else 1
            self._outlooks[status.model] = msgspec.structs.replace(before, steps=steps)
        elif before.steps < 2:
            view = self._by_name.get(status.model)
            self._outlooks[status.model] = ServiceOutlook(2, 0.0 if view is None else view.load_s)

    def apply_places(self, frame: PlacesFrame, now: float) -> None:
        if frame.whole:
            self._places.clear()
        self._places |= {place.id: (place, now) for place in frame.places}

    def settle_switches(self, now: float) -> None:
        """Connected anew: what is still in progress is published again, the rest has ended meanwhile."""
        self.switches.clear()
        for span in self._switch_spans.values():
            span.ended = min(span.ended, now)

    def apply_switch(self, switch: SwitchMoved, now: float) -> bool:
        """Returns whether the switch has entered another phase."""
        known = self.switches.get(switch.model)
        before = None if known is None else known.moved
        self.switches[switch.model] = KnownSwitch(switch, now)
        if switch.first_answer is None:
            span = self._switch_spans.get(switch.model)
            if span is None or before is None or before.id != switch.id:
                span = self._switch_spans[switch.model] = SwitchSpan(now - switch.elapsed_s)
            if switch.phase in ENDED:
                span.ended = now
        return before is None or (before.id, before.phase) != (switch.id, switch.phase)

    # Views.

    def running(self, model: str) -> int:
        """The number of requests that use the model."""
        view = self._by_name.get(model)
        return 0 if view is None else view.running

    def distance(self, model: str, *, available: bool) -> ServiceDistance:
        """See `Host.distance`."""
        if not available:
            return UNAVAILABLE
        view = self._by_name.get(model)
        before, parallel = (0, 1) if view is None else (view.running + view.waiting, view.parallel)
        requests = max(0, before + self._since_view.get(model, 0))
        outlook = self._outlooks.get(model, NO_OUTLOOK)
        return distance_by(outlook, requests, parallel, max(0, self._host_load), before=before)

    def offer(self, model: str, prompt: PromptIdentity | None, *, available: bool) -> HostOffer:
        """See `Host.offer`."""
        read = read_before(prompt, self._conversations.get(model, ()))
        return offer_by(self._by_name.get(model), self.distance(model, available=available), read)

    def place(self, number: int, now: float) -> tuple[int | None, float | None]:
        """A queued lease's position, and its estimated wait if that rests on measurements."""
        place, _ = self._places.get(number, (None, 0.0))
        if place is None:
            return None, None
        return place.position, self.estimate_s(number, now) if place.measured else None

    def estimate_s(self, number: int, now: float) -> float:
        """A queued lease's estimated wait, in seconds."""
        place, at = self._places.get(number, (None, 0.0))
        return 0.0 if place is None else max(0.0, place.eta_s - (now - at))

    def switched_s(self, model: str, since: float, now: float) -> float:
        """How long a switch to the model took, from `since` to `now`."""
        span = self._switch_spans.get(model)
        return 0.0 if span is None else span.overlap_s(since, now)
