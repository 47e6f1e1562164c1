"""Ollama's protocol, as clients speak it (`adapter`) and as backends speak it (`upstream`)."""
