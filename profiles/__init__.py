"""Profiles: named ways to run a model, where their files come from and what the files say."""
