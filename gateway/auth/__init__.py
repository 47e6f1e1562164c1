"""Authentication and authorisation: API keys, scopes, sessions of the dashboard, and bind addresses."""
