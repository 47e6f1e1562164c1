"""Who may call: keys, scopes, sessions of the page, and where the gateway may listen."""
