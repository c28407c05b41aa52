"""The mapping that the settings name."""

from pathlib import Path

from pipeline.settings import Settings
from schemas.mapping import FieldMapping, InvalidMapping, read_mapping


class MappingError(ValueError):
    """A mapping that may not be used, or that is missing; the text says what to do."""


def own_mapping(settings: Settings) -> FieldMapping | None:
    """Return the mapping of ``mapping_file``; None without one. Raises `MappingError` for one that is none."""
    return None if settings.mapping_file is None else mapping_of(settings.mapping_file)


def mapping_of(file: Path) -> FieldMapping:
    """Return the mapping of a file; raises `MappingError` for one that is none."""
    try:
        return read_mapping(file.read_bytes())
    except InvalidMapping as error:
        raise MappingError(f"{file}: {error}") from error
