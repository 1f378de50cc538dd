"""What every package stands on: files, errors, tables, the terminal."""
