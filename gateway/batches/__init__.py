"""Batches: requests of clients that are served while hosts have nothing else to do."""
