"""Tables, curves and galleries in one static page."""
