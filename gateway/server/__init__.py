"""Sockets, HTTP to clients, and systemd's protocols."""
