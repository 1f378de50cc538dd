"""The device: frames in, one decision a frame, head, exchange or local finish, measurement out."""
