"""What agents can ask and do over MCP: each tool is a call of the gateway's own routes, with the scope of that route."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from hostler.gateway.admin.internal_call import InternalCalls

#: The requests that an explanation is based on.
_RECENT = 20

Arguments = Mapping[str, Any]
Run = Callable[[InternalCalls, Arguments], Awaitable[object]]


class AgentTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool: `scope` is what a key needs for it, `parameters` are JSON schemas by name, those of `required` must be given.

    `run` returns text, or a value that is shown as JSON.
    """

    name: str
    description: str
    scope: str
    run: Run
    parameters: Mapping[str, Any] = {}
    required: tuple[str, ...] = ()


async def _list_models(calls: InternalCalls, arguments: Arguments) -> object:
    rules = calls.client.rules
    cards = (await calls.get("/admin/status"))["models"]
    shown = ("name", "aliases", "state", "context", "capabilities", "description", "failure")
    return [
        {name: card.get(name) for name in shown if card.get(name)}
        for card in cards
        if rules is None or rules.allows_model(card["name"])
    ]


async def _status(calls: InternalCalls, arguments: Arguments) -> object:
    status = await calls.get("/admin/status")
    models = await _list_models(calls, {})
    hosts = [
        {name: host[name] for name in ("backend", "reachable", "serving", "waiting", "queue")}
        for host in status["hosts"]
    ]
    kept = ("version", "active", "default", "chain", "in_flight", "config_errors", "cluster")
    return {**{name: status.get(name) for name in kept}, "hosts": hosts, "models": models}


async def _why_slow(calls: InternalCalls, arguments: Arguments) -> object:
    status = await calls.get("/admin/status")
    model = arguments.get("model") or status.get("active") or status.get("default")
    route = await calls.get("/admin/route", model=model)
    history = await calls.get("/admin/history", kind="requests", limit=200)
    recent = [entry["event"] for entry in history if entry["event"].get("model") == route["model"]][:_RECENT]
    reasons = [f"{hop['backend']}: {hop['words']}" for hop in route["hops"] if hop.get("reason")]
    reasons += [
        f"{host['backend']}: {host['serving']} requests are served and {host['waiting']} wait"
        for host in status["hosts"]
        if host["waiting"]
    ]
    if any(hop["supervised"] for hop in route["hops"]):
        forecast = (await calls.get("/admin/forecast", model=route["model"]))["hosts"]
        for backend, each in forecast.items():
            if each["ready_s"] >= 0.5:
                stops = f", and {', '.join(each['stops'])} would be stopped for it" if each["stops"] else ""
                reasons.append(f"{backend}: a request now would begin in about {each['ready_s']:.1f} s{stops}")
    return {
        "model": route["model"],
        "would_be_served_by": route["first"],
        "reasons": reasons or ["nothing waits, and the model is loaded: what is left is the model's own speed"],
        "recent_answers": _averages(recent),
        "in_flight": [each for each in status["in_flight"] if each.get("model") == route["model"]],
    }


def _averages(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the time of recent answers went, in seconds on average."""
    answered = [each for each in requests if each.get("outcome") == "ok"]
    found: dict[str, Any] = {"answered": len(answered), "failed": len(requests) - len(answered)}
    for name in ("queue_s", "switch_s", "first_token_s", "seconds"):
        values = [value for each in answered if (value := each.get(name)) is not None]
        if values:
            found[name] = round(math.fsum(values) / len(values), 3)
    speeds = [
        (each["completion_tokens"] - 1) / took
        for each in answered
        if each.get("first_token_s") is not None
        and each.get("completion_tokens", 0) > 1
        and (took := each["seconds"] - each["first_token_s"]) > 0
    ]
    if speeds:
        found["tokens_per_second"] = round(math.fsum(speeds) / len(speeds), 1)
    return found


async def _load(calls: InternalCalls, arguments: Arguments) -> object:
    return await calls.post("/admin/load", model=arguments["model"])


async def _switch(calls: InternalCalls, arguments: Arguments) -> object:
    before = {card["name"] for card in (await calls.get("/admin/status"))["models"] if card["state"] == "loaded"}
    loaded = await calls.post("/admin/load", model=arguments["model"])
    after = {card["name"] for card in (await calls.get("/admin/status"))["models"] if card["state"] == "loaded"}
    return {**loaded, "stopped": sorted(before - after), "loaded": sorted(after)}


async def _chat(calls: InternalCalls, arguments: Arguments) -> object:
    system = arguments.get("system")
    messages = [{"role": "system", "content": system}] if system else []
    answer = await calls.post(
        "/v1/chat/completions",
        model=arguments.get("model"),
        messages=[*messages, {"role": "user", "content": arguments["prompt"]}],
        max_tokens=arguments.get("max_tokens"),
    )
    return answer["choices"][0]["message"].get("content") or ""


_MODEL = {"type": "string", "description": "Name or alias of a model."}
_OPTIONAL_MODEL = {"type": "string", "description": "Name or alias of a model; the active or default one if left out."}

TOOLS = (
    AgentTool(
        name="list_models",
        description="List the models of this gateway: state, context in tokens, and what they can do.",
        scope="read",
        run=_list_models,
    ),
    AgentTool(
        name="status",
        description="Show hosts, queues, requests in progress, backends and mistakes in the configuration.",
        scope="read",
        run=_status,
    ),
    AgentTool(
        name="why_is_it_slow",
        description="Explain what keeps requests for a model waiting, and where the time of recent answers went.",
        scope="read",
        run=_why_slow,
        parameters={"model": _OPTIONAL_MODEL},
    ),
    AgentTool(
        name="load_model",
        description="Load a model and wait until it is ready. Other models may be unloaded for it.",
        scope="operate",
        run=_load,
        parameters={"model": _MODEL},
        required=("model",),
    ),
    AgentTool(
        name="switch_model",
        description="Load a model, and report which models were stopped for it.",
        scope="operate",
        run=_switch,
        parameters={"model": _MODEL},
        required=("model",),
    ),
    AgentTool(
        name="chat",
        description="Ask a model, and return its answer. The model is loaded first if need be.",
        scope="infer",
        run=_chat,
        parameters={
            "prompt": {"type": "string", "description": "What the model is asked."},
            "model": _OPTIONAL_MODEL,
            "system": {"type": "string", "description": "A system prompt."},
            "max_tokens": {"type": "integer", "minimum": 1, "description": "The longest answer, in tokens."},
        },
        required=("prompt",),
    ),
)
