"""Versions that were trained, kept in a registry."""

from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.training.fit import Trained


def register(registry: Registry, trained: Trained) -> None:
    """Keep a LightGBM version with its metrics, and the policy made for it; neither is activated.

    Raises `pipeline.models.registry.RegistryError`.
    """
    details = {"metrics": trained.metrics, "features": trained.model.trained_on, **trained.model.metadata}
    registry.register(LIGHTGBM, trained.model.to_payload(), details)
    registry.register(POLICY, trained.policy.to_payload(), {"lightgbm_version": trained.model.version})
