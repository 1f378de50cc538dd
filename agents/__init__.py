"""The agents: learning, baselines, evaluation, export of policies, the demo, the command line.

Importing this package is light: torch and stable-baselines3 are imported by the modules
that train (`agents.training`, `agents.export_policy`, ...), and the device needs none of them.
"""
