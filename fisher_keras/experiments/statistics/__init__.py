"""Statistics over many trained networks."""
