"""Models as immutable scorers: a LightGBM version, the River layer on top of it, and their blend."""
