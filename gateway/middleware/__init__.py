"""The layers of a request's way, one duty each. None knows another; `app.py` puts them in order."""
