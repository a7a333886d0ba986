"""Comparisons of training methods (Section 7.2)."""
