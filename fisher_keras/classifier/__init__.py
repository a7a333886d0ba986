"""A Keras classifier as a function of its weights (Section 3)."""
