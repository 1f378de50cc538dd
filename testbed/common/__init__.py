"""Modules that the testbed's parts share."""
