"""Tests that need a CUDA device; each skips where there is none."""
