"""What the page says of switches, held against what supervisors tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from hostler.gateway import desk
from hostler.supervisor.contract import SwitchPhase

SWITCHING = (Path(next(iter(desk.__path__))) / "ui" / "switching.js").read_text()


def test_the_page_shows_phases_in_the_order_that_a_switch_goes_through_them() -> None:
    found = re.search(r"const PHASES = (\[.*?\]);", SWITCHING)
    assert found is not None
    assert [*json.loads(found[1]), "failed"] == list(get_args(SwitchPhase))
