"""The parts of ``fraud-pipeline run``: worker processes, a monitor of their topics, and the live view."""
