"""The experiments of Section 7."""
