"""What a person at the terminal needs to begin: addresses that can be called as they stand, and lines to paste."""

from __future__ import annotations

from collections.abc import Sequence

from hostler import __version__

#: Who listens everywhere is called from the same machine by these.
_NEAR = {"0.0.0.0": "127.0.0.1", "::": "::1"}


#: As many models are named; `hostler models` lists all.
_NAMES_SHOWN = 6


def greeting(
    models: Sequence[str], default: str, places: Sequence[tuple[str, int]], *, keyed: bool, machine: str
) -> str:
    """`places` is where the gateway listens, `machine` the name by which others know this machine."""
    near = list(dict.fromkeys(nearby(*place) for place in places))
    far = list(dict.fromkeys(f"http://{machine}:{port}" for host, port in places if host in _NEAR))
    url = near[0]
    lines = [
        f"Hostler {__version__} listens on {' and '.join(near)}",
        *([f"  elsewhere  {' and '.join(far)}"] if far else []),
        f"  models     {_some(models) or 'those of its backends'}",
        *(["  KEY        each request needs one: hostler keys add NAME"] if keyed else []),
        "",
        # A line each: what a terminal of 80 columns breaks is hard to read.
        f"  curl {url}/v1/chat/completions \\",
        "    -H 'Content-Type: application/json' \\",
        *(["    -H 'Authorization: Bearer KEY' \\"] if keyed else []),
        f'    -d \'{{"model": "{default}", "stream": true,',
        '         "messages": [{"role": "user", "content": "Hello!"}]}\'',
        "",
        f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={'KEY' if keyed else 'unused'}",
        f"  export OLLAMA_HOST={url}",
        f"  dashboard  {url}/ui/",
        "",
        "  Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names) if more < 2 else f"{', '.join(names[:_NAMES_SHOWN])} and {more} more"


def nearby(host: str, port: int) -> str:
    """The URL of a gateway that listens there, for those on the same machine."""
    return f"http://{shown(_NEAR.get(host, host), port)}"


def shown(host: str, port: int) -> str:
    """An address as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
