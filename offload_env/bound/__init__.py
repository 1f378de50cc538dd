"""The lower bound that no policy can beat, and the clairvoyant search for the best schedule."""
