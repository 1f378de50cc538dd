"""The wire between device and server: messages, the device's client, TLS, addresses, ports."""
