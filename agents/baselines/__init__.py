"""Rules and bandits that the agent is compared with."""
