"""What tests of downloads share: models to fetch, a look into the cache, and waiting for other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio import to_thread

from hostler.profiles.schema import Profile

TINY = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
HF = "hf:org/repo/tiny.gguf"
HF_PATH = "/org/repo/resolve/main/tiny.gguf"

#: A program that fetches the model `argv[1]` into the cache `argv[2]`, with the checksum `argv[3]` if it is given.
FETCH_PROGRAM = """
import sys, anyio
from pathlib import Path
from hostler.profiles.fetch import fetch
from hostler.profiles.schema import Profile
profile = Profile(name="tiny", model=sys.argv[1], sha256=sys.argv[3] if len(sys.argv) > 3 else None)
print(anyio.run(lambda: fetch(profile, cache_dir=Path(sys.argv[2]))))
"""


def tiny_profile(model: str, sha256: str | None = None) -> Profile:
    return Profile(name="tiny", model=model, sha256=sha256)


def stored_files(cache: Path) -> list[str]:
    """Everything in the cache that is neither a lock nor a checksum record."""
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and ".locks" not in path.parts and path.suffix != ".json"
    )


def wait_until(condition: Callable[[], Any]) -> None:
    """For what another process or thread does, where there is no event to wait for."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def until(condition: Callable[[], Any]) -> None:
    await to_thread.run_sync(wait_until, condition)
