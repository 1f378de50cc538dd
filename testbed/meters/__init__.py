"""Energy meters behind one interface: a model, and the sensors a machine may have."""
