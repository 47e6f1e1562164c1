"""What answers requests behind the gateway, and how bytes get there and back."""
