"""The gateway: one address, every client's protocol, and a chain of backends behind it."""
