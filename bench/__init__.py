"""The benchmark: the same load through Hostler and other proxies. Not installed."""
