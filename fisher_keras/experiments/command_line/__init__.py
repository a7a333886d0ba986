"""Commands: their flags, their table, and how they run."""
