"""Queues and model switches of a host: decisions as plain functions, and the orchestrator that carries them out."""
