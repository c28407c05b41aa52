"""What several tests build on: logs and messages, a small champion, the slow reference, worker processes."""
