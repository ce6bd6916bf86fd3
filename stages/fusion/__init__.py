"""F(T, I), head C and the composite loss: one fit a cell."""
