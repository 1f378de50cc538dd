"""Other projects' trace formats, one module each; `testbed.traces.importing` chooses."""
