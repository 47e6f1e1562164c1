"""Worker processes: several processes serve models' routes, and one owns what they have in common."""
