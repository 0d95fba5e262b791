"""One run: its folder and identity, its log, what it says on the terminal, and its record."""
