"""The forms in which a server may show a key that it was sent: in a header's base64, a URL, a dump of bytes."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from urllib.parse import quote, quote_plus


def encodings(key: bytes) -> frozenset[bytes]:
    """All forms of the key that differ from it. Of base64 it is the part that is the same whatever stands around the key."""
    text = key.decode("latin-1")
    urls = [quote(key, safe=""), quote(key), quote_plus(key)]
    pages = [html.escape(text), html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")]
    found = {
        *(each.encode() for url in urls for each in (url, _lower_escapes(url))),
        *(page.encode("latin-1") for page in pages),
        *(key.hex().encode(), key.hex().upper().encode()),
        # Shifted by a byte it is the other byte order.
        text.encode("utf-16-le")[:-1],
        *_base64(key),
    }
    return frozenset(found - {key})


def _base64(key: bytes) -> Iterator[bytes]:
    """The key at each of three places, in both alphabets, and with slashes as JSON may escape them."""
    for shift, first in enumerate((0, 2, 3)):
        encoded = base64.b64encode(bytes(shift) + key).rstrip(b"=")
        # The first and the last character also depend on what stands beside the key.
        whole = encoded[first : -1 if (shift + len(key)) % 3 else None]
        yield whole
        yield whole.replace(b"+", b"-").replace(b"/", b"_")
        yield whole.replace(b"/", b"\\/")


def _lower_escapes(url: str) -> str:
    """The same URL with small letters in its escapes."""
    first, *rest = url.split("%")
    return "%".join((first, *(each[:2].lower() + each[2:] for each in rest)))
