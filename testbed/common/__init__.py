"""What the testbed's parts share."""
