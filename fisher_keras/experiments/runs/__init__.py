"""Many networks, each trained once."""
