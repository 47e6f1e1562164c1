"""Sockets, HTTP towards clients, and what systemd is told."""
