"""Frames of workers: settings survive the way, and pieces of any size become whole frames."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fakes.serving_parts import BACKENDS

from hostler.gateway.backends.cost import DailySpending
from hostler.gateway.config import read
from hostler.gateway.settings import Settings
from hostler.gateway.workers.frames import (
    BreakerHint,
    FrameToWorker,
    SpendingState,
    StateQuery,
    WorkerStart,
    encode_frame,
    frames_from_worker,
    frames_to_worker,
)


def start(settings: Settings) -> WorkerStart:
    return WorkerStart(
        number=1, release="1", settings=settings, keys_needed=False, sockets=(3, 4), others={2: (5,)}, forward_to="/m", secret="s", supervisor=("unix:/s", "t"), presets={},
        models={}, profiles={}, joined=(), active="big", spending=SpendingState(DailySpending(day="today"), 0.0, 0.5, 1), log_level=20,
    )  # fmt: skip


def test_a_worker_gets_the_settings_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(BACKENDS.replace("gateway:", "gateway:\n  max_body: 8MB\n  workers: 2"), encoding="utf-8")
    sent = start(read(file, {}).settings)
    assert list(frames_to_worker().feed(encode_frame(sent))) == [sent]
    assert sent.settings.gateway.max_body == 8_000_000


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_frames_are_cut_out_of_pieces_of_any_size(size: int) -> None:
    sent: list[FrameToWorker] = [StateQuery(1), BreakerHint("pc", None, "open", 2.5), StateQuery(2)]
    data, stream = b"".join(map(encode_frame, sent)), frames_to_worker()
    received = [frame for at in range(0, len(data), size) for frame in stream.feed(data[at : at + size])]
    assert received == sent


def test_a_frame_of_the_other_direction_is_a_mistake() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid value"):
        list(frames_from_worker().feed(encode_frame(StateQuery(1))))


def test_what_no_process_could_read_is_not_sent() -> None:
    with pytest.raises(NotImplementedError, match="object cannot be sent"):
        encode_frame(BreakerHint("pc", object(), "open", 1.0))  # type: ignore[arg-type]
