"""YAML text to typed values, with the file and the line in every complaint."""

from __future__ import annotations


class Size(int):
    """A number of bytes; in a file either a plain integer or a string such as `9GiB`, `512MB`, `4096`."""
