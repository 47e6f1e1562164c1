"""What is kept of requests, as the settings say: traces, transcripts, responses, and streams."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hostler import __version__
from hostler.gateway.config import ConfigError
from hostler.gateway.gateway_settings import (
    MISSING_TRACING_EXTRA,
    RecordingSettings,
    ResponsesSettings,
    StreamSettings,
    TracingSettings,
)
from hostler.gateway.response_store import ResponseStore
from hostler.gateway.response_store import default_file as responses_file
from hostler.gateway.stream_store import StreamLimits, StreamStore
from hostler.gateway.telemetry.transcripts import TranscriptLimits, Transcripts
from hostler.gateway.telemetry.transcripts import default_file as transcripts_file
from hostler.profiles.file_reading import home_path

if TYPE_CHECKING:
    from hostler.gateway.telemetry.tracing import Tracer

logger = logging.getLogger(__name__)


def _require_tracing() -> None:
    from hostler.gateway.telemetry.tracing import MissingExtra, require_extra

    try:
        require_extra()
    except MissingExtra as error:
        raise ConfigError(MISSING_TRACING_EXTRA) from error


def tracer(tracing: TracingSettings, clock: Callable[[], float]) -> Tracer | None:
    """`None` without an endpoint: nothing of OpenTelemetry is imported then. Raises `ConfigError` without the extra."""
    if tracing.endpoint is None:
        return None
    _require_tracing()
    from hostler.gateway.telemetry.tracing import Tracer, TracingOptions

    options = TracingOptions(
        endpoint=tracing.endpoint, headers=tracing.headers, service=tracing.service, sample=tracing.sample
    )
    return Tracer(options, clock, version=__version__)


def transcripts(recording: RecordingSettings) -> Transcripts | None:
    """`None` while recording is off."""
    file = home_path(recording.file) if recording.file else transcripts_file()
    if recording.contents:
        logger.warning("recording prompts and answers in %s (gateway.recording.contents)", file)
        return Transcripts(file, TranscriptLimits(max_bytes=recording.max_size, max_age_s=recording.max_age_s))
    if file.is_file():
        logger.warning("%s still contains recorded prompts and answers; delete it if it is no longer needed", file)
    return None


def response_store(settings: ResponsesSettings) -> ResponseStore | None:
    """`None` if no responses are stored."""
    if settings.store == "off":
        return None
    file = None
    if settings.store == "disk":
        file = home_path(settings.file) if settings.file else responses_file()
    return ResponseStore(file, max_bytes=settings.max_size, max_age_s=settings.max_age_s, wall=time.time)


def stream_store(settings: StreamSettings) -> StreamStore | None:
    """`None` if streams end with their client's connection."""
    if not settings.resume:
        return None
    limits = StreamLimits(
        max_stream=settings.max_stream,
        max_size=settings.max_size,
        keep_s=settings.keep_s,
        detached_s=settings.detached_s,
    )
    return StreamStore(limits, wall=time.time)
