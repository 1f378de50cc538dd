"""Rendered road signs: frames that need no data set."""
