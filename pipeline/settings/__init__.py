"""Settings, from the environment (prefix ``FRAUD_PIPELINE_``) and from arguments; validated at the start."""

from pipeline.settings.settings import PREFIX, SECTIONS, Settings

__all__ = ["PREFIX", "SECTIONS", "Settings"]
