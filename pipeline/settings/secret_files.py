"""Settings whose values are in files, so that no secret stands in the environment."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError


def is_url(path: object) -> bool:
    """Return True for a path that is a URL, such as ``s3://``, or was one before `pathlib` took it."""
    return re.match(r"\w\w+:/", str(path)) is not None


class SettingFileError(SettingsError):
    """A file that a variable names cannot be used; the text has nothing of its content."""


class SettingFiles(PydanticBaseSettingsSource):
    """Values in files: the variable ``X_FILE`` names the file that holds what ``X`` would."""

    def __init__(self, settings_cls: type[BaseSettings], prefix: str) -> None:
        super().__init__(settings_cls)
        self._prefix = prefix

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the content of the file of a setting, None where no variable names one."""
        variable = self._variable(field_name)
        path = os.environ.get(variable)
        if path is None:
            return None, field_name, False
        try:
            text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise SettingFileError(f"{variable} names {path}, which cannot be read: {reason}") from None
        return text, field_name, self.field_is_complex(field)

    def __call__(self) -> dict[str, Any]:
        """Return the settings that are in files, by name."""
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            value, _, is_complex = self.get_field_value(field, name)
            if value is None:
                continue
            try:
                found[name] = self.prepare_field_value(name, field, value, is_complex)
            except ValueError:
                raise SettingFileError(f"{self._variable(name)}: the file holds no JSON object") from None
        return found

    def _variable(self, name: str) -> str:
        return f"{self._prefix}{name.upper()}_FILE"
