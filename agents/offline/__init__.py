"""Learning from what deployed devices recorded."""
