"""The command line: what each command takes, and those commands that are not rooms of their own."""
