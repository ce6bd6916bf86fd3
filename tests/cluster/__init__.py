"""Tests against a real Slurm of one node, started here on loopback."""
