"""The acceptance run: real transactions through broker and agents, and everything that came out held to the file."""

import os
from pathlib import Path

# Before anything of the pipeline is imported: sets of all built-in features are measured.
os.environ.setdefault("FRAUD_PIPELINE_FEATURES_FILE", str(Path(__file__).parents[1] / "features.toml"))
