"""How engines are asked to stop."""

from __future__ import annotations

import signal
from typing import get_args

import pytest
from fakes.windows_system import SIGNALS

from hostler.profiles.engines import StopSignal
from hostler.supervisor.child import FORCED_END
from hostler.supervisor.engine_stop import signal_number


@pytest.mark.parametrize("name", get_args(StopSignal))
def test_every_signal_stops_an_engine_where_the_system_lacks_it(
    monkeypatch: pytest.MonkeyPatch, name: StopSignal
) -> None:
    assert signal_number(name) == signal.Signals[f"SIG{name}"]
    for missing in (*SIGNALS, "SIGQUIT"):
        monkeypatch.delattr(signal, missing, raising=False)
    expected = {"KILL": FORCED_END, "INT": signal.SIGINT}.get(name, signal.SIGTERM)
    assert signal_number(name) == expected
