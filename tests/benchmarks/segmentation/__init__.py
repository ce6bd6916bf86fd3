"""What the benchmark of segmentation quality is made of."""
