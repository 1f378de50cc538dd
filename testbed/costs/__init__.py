"""Campaigns, the practical models of delay and energy fitted to them, and power profiles."""
