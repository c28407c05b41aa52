"""History through the topics on a simulated clock."""
