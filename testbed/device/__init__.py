"""The device: from camera frames and decisions to measurements."""
