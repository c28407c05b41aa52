"""The mapping that the settings name."""

from pipeline.settings import Settings
from schemas.mapping import FieldMapping, InvalidMapping, read_mapping


class MappingError(ValueError):
    """A mapping that may not be used, or that is missing; the text says what to do."""


def own_mapping(settings: Settings) -> FieldMapping | None:
    """Return the mapping of ``mapping_file``; None without one. Raises `MappingError` for one that is none."""
    if settings.mapping_file is None:
        return None
    try:
        return read_mapping(settings.mapping_file.read_bytes())
    except InvalidMapping as error:
        raise MappingError(f"{settings.mapping_file}: {error}") from error
