"""Check the licences of the packages that are installed beside this interpreter: `python licences.py`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageMetadata, distributions

#: Licences that a runtime dependency may have, as SPDX identifiers.
ALLOWED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "PSF-2.0"}

#: How packages without an SPDX expression spell theirs.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def licences(metadata: PackageMetadata) -> set[str]:
    """SPDX identifiers of all licences that are named; empty if none is. Of alternatives, all have to be allowed."""
    if expression := metadata.get("License-Expression"):
        return set(re.split(r" AND | OR ", expression.replace("(", "").replace(")", "")))
    text = metadata.get("License")
    # Some packages put the licence's whole text here.
    named = [text] if text and len(text) < 60 else _classifiers(metadata)
    return {SPELLINGS.get(name, name) for name in named}


def _classifiers(metadata: PackageMetadata) -> Iterator[str]:
    for value in metadata.get_all("Classifier", []):
        if value.startswith("License :: "):
            yield value.rpartition(" :: ")[2]


def main() -> int:
    """Print what the licences are, or which are not allowed; returns the exit code."""
    found = {each.name: licences(each.metadata) for each in distributions()}
    if refused := {name: sorted(names) for name, names in found.items() if not names or names - ALLOWED}:
        print(f"not among the licences allowed in .ci/licences.py: {refused}", file=sys.stderr)
        return 1
    print(f"the licences of {len(found)} packages are {', '.join(sorted(set().union(*found.values())))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
