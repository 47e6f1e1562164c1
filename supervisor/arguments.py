"""What a profile's own engine arguments say, as far as the supervisor has to know it. Reads words, checks nothing."""

from __future__ import annotations

from collections.abc import Sequence

# Words that take no value and say the same as a word with one.
_SWITCHES = {"-kvu": "on", "--kv-unified": "on", "-no-kvu": "off", "--no-kv-unified": "off"}


def said(arguments: Sequence[str], *names: str) -> str | None:
    """The value of the argument that goes by one of `names`; the last one wins, as with the engine. `None`: not said."""
    found: str | None = None
    for index, word in enumerate(arguments):
        if _plain(word) not in names:
            continue
        if _plain(word) in _SWITCHES:
            found = _SWITCHES[_plain(word)]
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def said_number(arguments: Sequence[str], *names: str) -> int | None:
    """`said` as a whole number, or `None` if it is none."""
    try:
        return int(said(arguments, *names) or "")
    except ValueError:
        return None


def _plain(word: str) -> str:
    return word.replace("_", "-") if word.startswith("--") else word
