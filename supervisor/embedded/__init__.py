"""The embedded engine: llama.cpp's server from a wheel, run as a child process."""
