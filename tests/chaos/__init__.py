"""Faults on purpose under load, and an independent proof afterwards that nothing was lost, doubled or changed."""

import os
from pathlib import Path

# Before anything of the pipeline is imported, here and in the workers: every built-in feature is computed again.
os.environ.setdefault("FRAUD_PIPELINE_FEATURES_FILE", str(Path(__file__).parents[1] / "features.toml"))
