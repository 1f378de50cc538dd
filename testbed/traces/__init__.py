"""Network traces: reading, splitting, statistics, and the generator fitted to them."""
