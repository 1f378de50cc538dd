"""The commands of ``sliproad testbed``, one file each."""
