"""All settings as one object, with the sources of their values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.settings.decisions import DecisionSettings, LearningSettings
from pipeline.settings.kafka import KafkaSettings
from pipeline.settings.protection import ProtectionSettings
from pipeline.settings.secret_files import SettingFiles, is_url
from pipeline.settings.workers import WorkerSettings

PREFIX: Final = "FRAUD_PIPELINE_"
SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "Kafka": KafkaSettings,
    "Workers": WorkerSettings,
    "Decisions": DecisionSettings,
    "Labels and models": LearningSettings,
    "Protection": ProtectionSettings,
}
"""Settings by subject, as ``docs/settings.md`` lists them."""


class Settings(KafkaSettings, WorkerSettings, DecisionSettings, LearningSettings, ProtectionSettings, BaseSettings):
    """Everything that can be set."""

    # Errors do not repeat values: a password is one of them.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the first of which wins; objects of several are merged."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, SettingFiles(settings_cls, PREFIX)

    @field_validator("data_dir", "registry_dir", mode="before")
    @classmethod
    def _on_disk(cls, value: Any) -> Any:
        if is_url(value):
            raise ValueError("this is a directory of this machine, and no URL: name one on its disk, or mounted there")
        return value

    @model_validator(mode="after")
    def _pickles_are_signed(self) -> Self:
        """The state of a configured classifier is a pickle, which runs code that is in it."""
        if self.river_classifier is not None and self.signing_key_file is None and not self.trusted_keys:
            raise ValueError(
                "FRAUD_PIPELINE_RIVER_CLASSIFIER needs signatures, since the state of such a classifier is a pickle: "
                "set FRAUD_PIPELINE_SIGNING_KEY_FILE, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _signatures_bind_a_name(self) -> Self:
        """Without a name, records of a test cluster that has the same keys would count here."""
        if (self.signing_key_file is not None or self.trusted_keys) and not self.deployment:
            raise ValueError(
                "signatures bind the name of a deployment: set FRAUD_PIPELINE_DEPLOYMENT, such as `production`, and "
                "FRAUD_PIPELINE_UNNAMED_BELOW where earlier releases have signed"
            )
        return self

    @property
    def registry_path(self) -> Path:
        """Directory of the model registry."""
        return self.registry_dir if self.registry_dir is not None else self.data_dir / "registry"

    @property
    def token_database(self) -> Path:
        """File of the token database."""
        return self.token_database_file or self.data_dir / "tokens.sqlite"
