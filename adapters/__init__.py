"""Protocol adapters: bytes in, values out, bytes back. No I/O happens in this package."""
