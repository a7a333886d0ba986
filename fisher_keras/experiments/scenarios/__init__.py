"""The three scenarios of Section 7.1."""
