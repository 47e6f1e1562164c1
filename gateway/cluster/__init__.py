"""What several gateways have in common and may lose. Imported only with `cluster:` in the configuration."""
