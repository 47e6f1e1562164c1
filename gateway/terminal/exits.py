"""How commands end: their exit codes. Every one has its row in docs/operations.md."""

from __future__ import annotations

FAILED = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
INTERRUPTED = 130
