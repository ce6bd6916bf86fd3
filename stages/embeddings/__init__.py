"""CLIP image vectors of every view of every image."""
