"""What labels mean, and which examples are kept."""
