"""What a device needs to decide: observation, policies and their files, exploration."""
