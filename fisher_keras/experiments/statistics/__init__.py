"""What the records of many networks tell."""
