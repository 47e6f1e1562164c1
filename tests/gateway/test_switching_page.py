"""What the page says of switches and failures, held against what supervisors and the chain tell."""

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


def test_the_page_shows_phases_in_the_order_that_a_switch_goes_through_them() -> None:
    found = re.search(r"const PHASES = (\[.*?\]);", SWITCHING)
    assert found is not None
    assert [*json.loads(found[1]), "failed"] == list(get_args(SwitchPhase))


def test_the_page_has_words_for_everything_that_becomes_of_an_attempt() -> None:
    found = re.search(r"const WORDS = \{(.*?)\};", (FILES / "words.js").read_text(), re.DOTALL)
    assert found is not None
    known = set(re.findall(r"^  (\w+): ", found[1], re.MULTILINE))
    assert set(DESCRIPTIONS) | {"cancelled", "stopped", "gateway_failed"} == known
