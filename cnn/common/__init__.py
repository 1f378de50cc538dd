"""Basics for every package: files, errors, tables, the terminal."""
