"""The gateway's own routes: status, events, logs, actions of operators, and the dashboard."""
