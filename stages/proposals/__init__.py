"""SAM2 candidate masks for every image."""
