"""Needles: made-up facts in real text, and whether they are found."""
