"""The middleware that requests for models pass through, one concern each; `app.py` defines their order."""
