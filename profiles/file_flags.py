"""Flags of `os.open` that not every system has: 0 where there is no such flag, and what it asks for goes without saying."""

from __future__ import annotations

import os

BINARY: int = getattr(os, "O_BINARY", 0)
CLOSE_ON_EXEC: int = getattr(os, "O_CLOEXEC", 0)
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
NON_BLOCKING: int = getattr(os, "O_NONBLOCK", 0)
