"""What the paper's Section 7 does: training runs, and what is made of many of them."""
