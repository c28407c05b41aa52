"""The acceptance run: real transactions through broker and agents, and everything that came out held to the file."""
