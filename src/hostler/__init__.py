"""Hostler: an always-on LLM gateway for a home lab or a small team."""

__version__ = "0.1.0"
