"""The command line, and the live view of running processes."""
