"""Question sets: what is asked, over which passages, and what belongs to each passage."""
