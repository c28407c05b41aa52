"""Record batches that nobody can read: found, judged, and bounded."""
