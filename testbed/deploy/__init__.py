"""The device as an unattended service: configuration, guard, hot swap, logs, metrics, records."""
