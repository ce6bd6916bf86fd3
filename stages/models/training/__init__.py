"""Training of the embedded SAM2 on synthetic scenes and outlined images."""
