"""The emulated mobile link: a trace replayed by a proxy or by the kernel, and its arithmetic."""
