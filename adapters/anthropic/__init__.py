"""Anthropic's Messages API, as clients speak it (`adapter`) and as backends speak it (`upstream`)."""
