"""Where a head looked: the relevance of each part of an image, and how it lies to a mask."""
