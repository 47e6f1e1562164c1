"""The middleware of requests for models stand in the order that their duties need."""

from __future__ import annotations

from pathlib import Path

from fakes.serving_parts import serving
from starlette.middleware import Middleware

from hostler.gateway.middleware.model_admin import ModelAdminMiddleware
from hostler.gateway.model_pipeline import model_middleware


async def nothing_new() -> bool:
    return False


def names(middleware: list[Middleware]) -> list[str]:
    return [each.cls.__name__.removesuffix("Middleware") for each in middleware]  # type: ignore[attr-defined]


def test_what_answers_without_a_backend_stands_before_the_detection_of_models(tmp_path: Path) -> None:
    answering = [Middleware(ModelAdminMiddleware, model_admin=None)]
    found = model_middleware(
        serving(tmp_path),
        log=lambda event: None,
        refresh=nothing_new,
        key_usage=None,
        on_model_used=lambda model: None,
        answering=answering,
    )
    assert names(found) == [
        "RequestContext", "AccessLog", "ModelAdmin", "ModelDetection", "Fallback", "Queueing", "Switching",
    ]  # fmt: skip
