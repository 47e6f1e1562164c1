"""What the gateway answers about itself: status, events, logs, orders, and the page for people."""
