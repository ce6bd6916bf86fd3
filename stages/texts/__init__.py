"""The bank of class texts: one vector a class."""
