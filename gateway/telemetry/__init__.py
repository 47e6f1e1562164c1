"""What is kept of what happened: counters, log lines, figures of past requests, frames for readers."""
