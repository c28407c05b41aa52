"""Errors of models and policies."""


class ModelError(ValueError):
    """A model, layer or policy that cannot be used here; the text says what to do about it."""
