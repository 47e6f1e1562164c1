"""GPUs: what their drivers report, and how much memory programs other than engines take there."""
