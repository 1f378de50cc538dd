"""The device as an unattended service: configuration, guard, swaps, logs, metrics, rotation."""
