"""One network trained, and everything about it kept."""
