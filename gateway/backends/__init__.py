"""Backends: transports, the fallback chain, circuit breakers, health checks, and costs."""
