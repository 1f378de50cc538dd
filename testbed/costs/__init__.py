"""Campaigns, and the practical models of delay and energy fitted to them or to device records."""
