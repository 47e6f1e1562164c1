"""Telemetry: metrics, access log, log buffer, history, transcripts, traces, and event streams."""
