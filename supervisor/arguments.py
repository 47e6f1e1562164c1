"""What a profile's own engine arguments say, as far as the supervisor has to know it. Reads words, checks nothing."""

from __future__ import annotations

from collections.abc import Sequence

from hostler.profiles.schema import Profile

#: The longest text that becomes an embedding unless a profile's `batch` says more: it has to be read in one go.
EMBEDDED_TOKENS = 2048

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


def batch_of(profile: Profile) -> int:
    """How many tokens its engine reads in one go; for embeddings that is also how long a text may be."""
    return max(profile.batch, min(profile.context, EMBEDDED_TOKENS)) if profile.embeddings else profile.batch


def physical_batch_of(profile: Profile) -> int:
    """How many of them are worked on at the same time."""
    batch = said_number(profile.args, "-ub", "--ubatch-size")
    return batch or (batch_of(profile) if profile.embeddings else min(512, profile.batch))


def _plain(word: str) -> str:
    return word.replace("_", "-") if word.startswith("--") else word
