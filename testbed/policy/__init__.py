"""The decision: observation, policies and their files, exploration."""
