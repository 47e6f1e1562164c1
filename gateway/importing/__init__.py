"""Translates the configuration of other servers into sections of Hostler's. Pure: text in, values and notes out."""
