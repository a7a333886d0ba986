"""The search for beta, M and tau (Section 7.2)."""
