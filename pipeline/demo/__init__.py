"""What ``fraud-pipeline run`` is made of: worker processes, a monitor of their topics, and the live view."""
