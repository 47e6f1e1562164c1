"""Where answers come from, and how much each place is trusted at the moment."""
