"""What energy and time cost: meters behind one interface, power profiles, the cost model."""
