"""The supervisor: starts, watches, switches and stops inference engines on one host."""
