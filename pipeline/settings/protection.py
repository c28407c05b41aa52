"""Settings that protect models, snapshots and personal data."""

from pathlib import Path
from typing import Literal

import msgspec
from pydantic import BaseModel, Field, field_validator

from schemas.fields import PERSONAL
from schemas.messages import Label, Transaction

_ALL_PERSONAL = f"`personal` stands for {', '.join(f'`{name}`' for name in PERSONAL)}."
_REQUIRED = {field.name for kind in (Transaction, Label) for field in msgspec.structs.fields(kind) if field.required}


class ProtectionSettings(BaseModel):
    """Signatures, and what is left of personal data."""

    signing_key_file: Path | None = Field(
        default=None,
        description="Private Ed25519 key (PEM) that signs what is written to `models`, `control` and `lists`; its "
        "owner alone may read it. Once set, what is not signed is refused.",
    )
    trusted_keys: str = Field(
        default="",
        description="Files of public Ed25519 keys (PEM), separated by commas, besides the own one. Where any is set, "
        "records of `models`, `control` and `lists` that none of them signed are refused.",
    )
    deployment: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="Name of this deployment, such as `production`, which signatures bind: records that another one "
        "signed are refused. Needed where keys are set.",
    )
    unsigned_below: dict[str, int] = Field(
        default_factory=dict,
        description="Offset by topic (`models`, `control`, `lists`) below which records need no signature, as a JSON "
        "object: those from before signatures.",
    )
    unnamed_below: dict[str, int] = Field(
        default_factory=dict,
        description="Offset by topic (`models`, `control`) below which signatures need not bind the deployment's name, "
        "as a JSON object: those of earlier releases.",
    )
    snapshot_keys: str = Field(
        default="",
        description="Files of secret keys, separated by commas: the first one signs snapshots, and those that none of "
        "them signed are not used.",
    )
    dead_letters: Literal["original", "redacted"] = Field(
        default="original",
        description="Content of a dead letter: the record's own bytes, or none of them (`redacted`): only where the "
        "record is, its size, and the code of the error.",
    )
    dropped_fields: str = Field(
        default="",
        description="Optional fields of transactions and labels, separated by commas, that `profiled` does not hold, "
        f"such as `personal,note`. {_ALL_PERSONAL.replace('`card_id`, ', '')}",
    )
    token_fields: str = Field(
        default="card_id",
        description="Fields that `fraud-pipeline tokenise` replaces by tokens, separated by commas; `card_id` always "
        f"is one of them. {_ALL_PERSONAL}",
    )
    token_secret_file: Path | None = Field(
        default=None,
        description="Secret of at least 32 bytes without which nobody finds a value's key in the token database; its "
        "owner alone may read it.",
    )
    token_database_file: Path | None = Field(
        default=None,
        description="Database with a random key for each tokenised value. Unset: `tokens.sqlite` in the data "
        "directory.",
    )

    @field_validator("dropped_fields")
    @classmethod
    def _optional(cls, names: str) -> str:
        """No reader of `profiled` could do without a required field."""
        if found := _REQUIRED & {name.strip() for name in names.split(",")}:
            raise ValueError(f"{', '.join(sorted(found))} is required in every message: name optional fields only")
        return names

    @property
    def dropped_names(self) -> frozenset[str]:
        """Names in ``dropped_fields``."""
        return frozenset(_listed(self.dropped_fields)) - _REQUIRED

    @property
    def token_names(self) -> tuple[str, ...]:
        """Names in ``token_fields``, with ``card_id``."""
        return tuple(dict.fromkeys(("card_id", *_listed(self.token_fields))))


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [field for name in names for field in (PERSONAL if name == "personal" else (name,))]
