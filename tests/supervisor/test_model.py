"""One model of a host: when it was used, whether it is busy, and what is published of it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import AnswerLimits
from hostler.supervisor.engine_client import EngineActivity
from hostler.supervisor.engine_lifecycle import EngineLifecycle, EngineServices
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.memory import MemoryHistory
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.model_files import ModelFiles
from hostler.supervisor.process_limits import ProcessLimits

PROFILE = Profile(name="a", model="/m.gguf", aliases=("first",), context=4096, memory=7)

#: Later than the creation of every process in these tests.
LATER = 4e9


@pytest.fixture
def model() -> ManagedModel:
    services = EngineServices(
        settings=SupervisorSettings(), host="127.0.0.1", files=ModelFiles(), memory=MemoryHistory()
    )
    lifecycle = EngineLifecycle(PROFILE, services)
    return ManagedModel(
        lifecycle, EngineLog(), ProcessLimits(), host="127.0.0.1", ports=None, on_change=lambda _: None,
        expected_load_s=lambda: 1.5,
    )  # fmt: skip


def test_a_new_model_is_idle_since_its_process_exists(model: ManagedModel) -> None:
    assert model.idle_since == model.process.since
    model.mark_used(LATER)
    assert model.idle_since == LATER


@pytest.mark.parametrize(
    ("activity", "busy", "used"),
    [
        (EngineActivity(requests=1), True, True),
        (EngineActivity(requests=0, work_done=5), False, True),
        (EngineActivity(), False, False),
        (None, False, False),
    ],
)
def test_the_first_report_of_an_engine_counts_as_use_if_it_has_worked(
    model: ManagedModel, activity: EngineActivity | None, busy: bool, used: bool
) -> None:
    model.update_activity(activity, LATER)
    assert (model.busy, model.idle_since == LATER) == (busy, used)


def test_later_reports_count_as_use_if_they_differ(model: ManagedModel) -> None:
    model.update_activity(EngineActivity(work_done=5), LATER)
    model.update_activity(EngineActivity(work_done=5), LATER + 1)
    assert model.idle_since == LATER
    model.update_activity(EngineActivity(work_done=6), LATER + 2)
    assert model.idle_since == LATER + 2


def test_publishes_the_operators_pin_and_the_expected_memory(model: ManagedModel) -> None:
    model.pinned = True
    info = model.info()
    assert (info.name, info.aliases, info.context) == ("a", ("first",), 4096)
    assert (info.pinned, info.memory_bytes, info.load_s) == (True, 7, 1.5)


def test_publishes_the_limits_of_its_profile(model: ManagedModel) -> None:
    assert (model.info().limits, model.info().max_concurrent, model.info().device_bytes) == (None, None, {})
    model.lifecycle.replace_profile(replace(PROFILE, first_byte_s=9, max_answer_s=60, max_concurrent=4, max_waiting=2))
    info = model.info()
    assert info.limits == AnswerLimits(first_byte_s=9, max_answer_s=60)
    assert (info.max_concurrent, info.max_waiting) == (4, 2)


def test_unloading_costs_as_much_as_loading_unless_the_profile_says_otherwise(model: ManagedModel) -> None:
    assert model.evict_cost == 1.5
    model.lifecycle.replace_profile(replace(PROFILE, evict_cost=40))
    assert (model.evict_cost, model.info().evict_cost) == (40, 40)
