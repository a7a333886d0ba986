"""Figures of the scenarios."""
