"""What several stages load: the registry of weights, and adapters for sam2 and open_clip."""
