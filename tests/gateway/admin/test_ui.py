"""The dashboard's phases and texts, compared with those of the supervisor and the failure policy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from hostler.gateway import admin
from hostler.gateway.backends.failure_policy import DESCRIPTIONS
from hostler.supervisor.contract import SwitchPhase

FILES = Path(next(iter(admin.__path__))) / "static"
SWITCHING = (FILES / "switching.js").read_text()


def test_the_page_shows_the_phases_of_a_switch_in_order() -> None:
    found = re.search(r"const PHASES = (\[.*?\]);", SWITCHING)
    assert found is not None
    assert [*json.loads(found[1]), "failed"] == list(get_args(SwitchPhase))


def test_the_page_has_a_text_for_every_outcome_and_reason() -> None:
    found = re.search(r"const TEXT = \{(.*?)\};", (FILES / "outcomes.js").read_text(), re.DOTALL)
    assert found is not None
    known = set(re.findall(r"^  (\w+): ", found[1], re.MULTILINE))
    assert set(DESCRIPTIONS) | {"moved", "cancelled", "stopped", "gateway_failed"} == known
