"""A small survey with known truth: a sky, a point-spread function, a detector and the raw files they make."""
