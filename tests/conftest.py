"""What every test shares: the event loop that coroutines run on, and how properties are tried."""

from __future__ import annotations

import hypothesis
import pytest

# A busy machine is no reason to fail: pytest's own timeout is the limit. The profile `ci`, which hypothesis takes by
# itself where CI is set, has no deadline either, and tries the same examples each time.
hypothesis.settings.register_profile("patient", deadline=None)
if hypothesis.settings.get_current_profile_name() == "default":
    hypothesis.settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
