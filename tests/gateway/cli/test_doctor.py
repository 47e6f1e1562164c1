"""How the doctor's results and routes are shown."""

from __future__ import annotations

from typing import Any, cast

from hostler.gateway.cli.client import AdminResponse
from hostler.gateway.cli.doctor import Doctor, device_rows, finding_rows, program_rows, route_rows


def test_a_skipped_hop_says_for_how_long() -> None:
    hop = {"backend": "cloud", "name_there": "m", "local": False, "words": "is paused after failures"}
    hops = [{**hop, "retry_in_s": 12.2}, {**hop, "words": "", "retry_in_s": 0.0}]
    assert [row[4] for row in route_rows({"hops": hops, "first": "cloud"})] == [
        "is paused after failures (for another 12 s)",
        "would answer",
    ]


def test_a_host_out_of_service_is_not_waited_for() -> None:
    hop = {"backend": "pc", "name_there": "m", "reason": "draining", "words": "is being drained for maintenance"}
    finding = Doctor(cast(Any, None)).examine("m", hop)
    assert (finding.ok, finding.kind, finding.message) == (False, "draining", "is being drained for maintenance")
    ((_, _, result, *_, advice),) = finding_rows([finding])
    assert (result, advice) == ("draining", "it is out of service; `hostler drain --undo pc` takes it back")


class FakeGateway:
    """A gateway with a model for embeddings, which notes the paths and models of requests."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def get(self, path: str, query: Any = None) -> Any:
        hop = {"backend": "pc", "name_there": "vectors"}
        if path == "/admin/route":
            return {"model": "vectors", "hops": [hop]}
        return {
            "backends": [{"backend": "pc", "kind": "supervisor", "models": [{"name": "vectors", "kind": "embedding"}]}]
        }

    def send(self, path: str, body: Any, headers: Any, timeout_s: float) -> AdminResponse:
        self.sent.append((path, body["model"]))
        return AdminResponse(200, {"x-hostler-backend": "pc"}, {})


def test_a_model_for_embeddings_is_not_asked_to_chat() -> None:
    gateway = FakeGateway()
    doctor = Doctor(cast(Any, gateway))
    assert [
        (model, [each.ok for each in found]) for model, found in (doctor.examine_all(), doctor.examine_model("v"))
    ] == [("vectors", [True])] * 2
    assert doctor.ask("v", "vectors")["backend"] == "pc"
    assert gateway.sent == [("/v1/embeddings", "vectors"), ("/v1/embeddings", "vectors"), ("/v1/embeddings", "v")]


def test_a_host_that_would_answer_says_why_it_stands_at_its_place() -> None:
    hop = {"name_there": "m", "local": True, "words": "", "retry_in_s": 0.0}
    hops = [{**hop, "backend": "a", "reasons": ["loaded, with a free slot", "35 tokens/s"]}, {**hop, "backend": "b"}]
    assert [row[4] for row in route_rows({"hops": hops, "first": "a"})] == [
        "would answer: loaded, with a free slot, 35 tokens/s",
        "standby",
    ]


def test_a_llama_server_is_shown_with_its_build_its_devices_and_what_it_lacks() -> None:
    old = {
        "backend": "pc",
        "path": "/opt/llama-server",
        "build": "4242",
        "devices": [],
        "lacks": ["several conversations at a time", "embeddings"],
    }
    new = {**old, "build": "", "devices": ["CUDA0: NVIDIA", "CPU"], "lacks": []}
    assert program_rows([old, new]) == [
        ("pc", "/opt/llama-server", "4242", "CPU only", "several conversations at a time, embeddings"),
        ("pc", "/opt/llama-server", "-", "CUDA0: NVIDIA, CPU", "-"),
    ]


def test_a_card_is_shown_with_its_driver() -> None:
    gib = 1024**3
    card = {
        "backend": "pc", "name": "gpu0", "model": "NVIDIA GeForce RTX 4090", "driver": "570.124.06",
        "used_bytes": 3 * gib, "total_bytes": 24 * gib,
    }  # fmt: skip
    gone = {"backend": "pc", "name": "gpu1", "model": "", "used_bytes": None, "total_bytes": None}
    assert device_rows([card, gone]) == [
        ("pc", "gpu0", "NVIDIA GeForce RTX 4090", "570.124.06", "3.0 GiB of 24.0 GiB"),
        ("pc", "gpu1", "not found", "-", "- of -"),
    ]
