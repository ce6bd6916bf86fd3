"""Pictures: every image as the square that trained classifiers see, and what a segmenter makes of it."""
