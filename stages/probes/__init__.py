"""Logistic regression on frozen features: one fit a cell."""
