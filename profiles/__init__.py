"""Profiles: named ways to run a model, where its file comes from, and what the file contains."""
