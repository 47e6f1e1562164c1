"""Ollama's protocol, for its clients and for backends that speak it."""
