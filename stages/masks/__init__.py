"""Candidates or supplied masks to one mask and one masked image."""
