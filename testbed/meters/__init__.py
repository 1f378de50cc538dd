"""Costs in energy and time: meters with one interface, power profiles, the cost model."""
