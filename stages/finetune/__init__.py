"""Classifiers that are trained end to end, plain or with SAM features as channel attention."""
