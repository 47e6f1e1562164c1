"""The supervisor's metrics for Prometheus: counted from its events, or read from its status when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from hostler.supervisor.contract import Failure, HostStatus, ModelChanged, State, SupervisorEvent, SwitchMoved
from hostler.supervisor.instruments import Counter, Gauge, Histogram, Instrument, exposition


class SupervisorMetrics:
    """Pass every event of the host to `on_event`; `status` is called by `render`."""

    def __init__(self, status: Callable[[], HostStatus]) -> None:
        self._status = status
        self._starts = Counter("hostler_supervisor_starts", "Engine processes started.", ["model"])
        self._failures = Counter(
            "hostler_supervisor_failures", "Engines that failed to start or died.", ["model", "kind"]
        )
        self._switches = Histogram(
            "hostler_supervisor_switch_duration_seconds",
            "Time from the request to load a model to ready or failed.",
            ["model", "outcome"],
        )
        self._phases = Counter(
            "hostler_supervisor_switch_phase_seconds", "Time spent in switches, by phase.", ["phase"]
        )
        self._first_answers = Counter(
            "hostler_supervisor_first_answer_prompt_tokens",
            "Prompt tokens of the first answers after switches, cached in a restored conversation or read.",
            ["model", "source"],
        )
        self._generations: dict[str, int] = {}
        self._last_failures: dict[str, Failure] = {}

    def on_event(self, event: SupervisorEvent) -> None:
        if isinstance(event, SwitchMoved):
            if event.first_answer is not None:
                answer = event.first_answer
                self._first_answers.inc(event.model, "cached", amount=answer.cached)
                self._first_answers.inc(event.model, "read", amount=max(0, answer.prompt - answer.cached))
            elif event.phase in ("ready", "failed"):
                self._switches.observe(event.elapsed_s, event.model, event.phase)
                for phase, seconds in event.phase_seconds.items():
                    self._phases.inc(phase, amount=seconds)
        elif isinstance(event, ModelChanged):
            status = event.status
            if status.pid is not None and self._generations.get(status.model) != status.generation:
                self._generations[status.model] = status.generation
                self._starts.inc(status.model)
            # A failure is part of every event until the model is ready: the same object each time.
            if status.failure is not None and self._last_failures.get(status.model) is not status.failure:
                self._last_failures[status.model] = status.failure
                self._failures.inc(status.model, status.failure.kind)

    async def render(self, *, queue: tuple[int, int] | None = None, process: bool = True) -> bytes:
        """The text of `/metrics`. `queue` is how many requests wait and are served, where that is known. Without `process`
        where another part of this process already exposes that."""
        counted = (self._starts, self._failures, self._switches, self._phases, self._first_answers)
        queued = [] if queue is None else _queue(*queue)
        return await exposition([*counted, *_current(self._status()), *queued], process=process)


def _queue(waiting: int, serving: int) -> list[Instrument]:
    depth = Gauge("hostler_supervisor_queue_depth", "Requests of all gateways waiting for a model.")
    served = Gauge("hostler_supervisor_serving", "Requests of all gateways being answered.")
    depth.set(waiting)
    served.set(serving)
    return [depth, served]


def _current(host: HostStatus) -> list[Instrument]:
    state = Gauge(
        "hostler_supervisor_model_state", "1 for the state a model is in, 0 for all others.", ["model", "state"]
    )
    memory = Gauge("hostler_supervisor_model_memory_bytes", "Memory used by a model's processes.", ["model", "where"])
    need = Gauge("hostler_supervisor_model_need_bytes", "Memory a model is expected to use.", ["model"])
    load = Gauge("hostler_supervisor_model_load_seconds", "Expected duration of a model's next load.", ["model"])
    pinned = Gauge("hostler_supervisor_model_pinned", "1 for a pinned model.", ["model"])
    leases = Gauge(
        "hostler_supervisor_model_lease_expires_timestamp_seconds",
        "When the lease of a model ends; absent without a lease.",
        ["model", "holder"],
    )
    budget = Gauge("hostler_supervisor_memory_budget_bytes", "Memory that all models together may use.")
    device_need = Gauge(
        "hostler_supervisor_model_device_need_bytes",
        "Memory of a GPU that a model is expected to use.",
        ["model", "device"],
    )
    for status in host.models:
        for each in get_args(State):
            state.set(status.state == each, status.model, each)
        memory.set(status.memory_bytes, status.model, "ram")
        memory.set(status.gpu_bytes, status.model, "gpu")
    for lease in host.leases:
        leases.set(lease.expires_at, lease.model, lease.holder)
    for profile in host.profiles:
        need.set(profile.memory_bytes, profile.name)
        pinned.set(profile.pinned, profile.name)
        for device, amount in profile.device_bytes.items():
            device_need.set(amount, profile.name, device)
        if profile.load_s is not None:
            load.set(profile.load_s, profile.name)
    if host.budget_bytes is not None:
        budget.set(host.budget_bytes)
    return [state, memory, need, load, pinned, leases, budget, device_need, *_devices(host)]


def _devices(host: HostStatus) -> list[Instrument]:
    """What drivers report of the GPUs. What they do not report is left out."""
    memory = Gauge("hostler_supervisor_device_memory_bytes", "Memory of a GPU, by what it is for.", ["device", "kind"])
    utilization = Gauge("hostler_supervisor_device_utilization_ratio", "Part of the time a GPU was busy.", ["device"])
    temperature = Gauge("hostler_supervisor_device_temperature_celsius", "Temperature of a GPU.", ["device"])
    power = Gauge("hostler_supervisor_device_power_watts", "Power that a GPU draws.", ["device"])
    info = Gauge(
        "hostler_supervisor_device_info", "Always 1; vendor and model are labels.", ["device", "vendor", "model"]
    )
    for device in host.devices:
        info.set(1, device.name, device.vendor or "", device.model)
        others = device.other_bytes if device.used_bytes is not None else None
        amounts = {"total": device.total_bytes, "used": device.used_bytes, "other_programs": others}
        for kind, amount in {**amounts, "for_models": device.capacity_bytes}.items():
            if amount is not None:
                memory.set(amount, device.name, kind)
        if device.utilization is not None:
            utilization.set(device.utilization / 100, device.name)
        if device.temperature_c is not None:
            temperature.set(device.temperature_c, device.name)
        if device.power_w is not None:
            power.set(device.power_w, device.name)
    return [info, memory, utilization, temperature, power]
