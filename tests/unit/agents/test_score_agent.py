"""The score agent's partitions: blocks of declarations that are published while it runs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agents.score import ScorePartitions
from pipeline.engine.encoding.blocks import KernelMismatch
from pipeline.features.catalogue import CARD_FEATURES
from pipeline.features.declaration import Declaration
from pipeline.features.feature_set import FeatureSet
from pipeline.features.known_sets import know
from pipeline.kafka.cluster.errors import SessionError, TopicError
from pipeline.settings import Settings
from pipeline.settings.features_file import read_features_file
from schemas.records import Record
from schemas.topics import DECISIONS, TRANSACTIONS
from tests.helpers.blocks import changed
from tests.helpers.champion import active
from tests.helpers.logs import Log, after, to, transaction
from tests.unit.engine.test_engine_score import profile, score

NOW = after(hours=1)


def declared(window: str) -> Declaration:
    """A declaration whose cards have this process' features."""
    text = f'extends = "all"\n[[features]]\nentity = "merchant"\naggregate = "count"\nwindows = ["{window}"]\n'
    declaration = read_features_file(text.encode(), "f")
    assert FeatureSet(declaration).card_features == CARD_FEATURES
    return declaration


def written_by(kernel: str) -> Record:
    (record,) = profile([Log(TRANSACTIONS).append(transaction())]).records
    return msgspec.structs.replace(record, value=changed(record.value, kernel=kernel), partition=0)


def agent(home: Path, learn: Callable[[], None]) -> ScorePartitions:
    models = SimpleNamespace(model_set=SimpleNamespace(active=active()))
    environment = SimpleNamespace(
        settings=Settings(accept_other_kernel=True),
        directory=home / "score",
        models=lambda: models,
        learn_declarations=learn,
    )
    made = ScorePartitions(cast(Any, environment))
    made._held[0] = score()
    return made


def test_a_block_of_a_declaration_that_was_published_meanwhile_is_decided_once(tmp_path: Path) -> None:
    declaration = declared("61d")
    made = agent(tmp_path, lambda: know([declaration]))
    result = made.process([written_by(FeatureSet(declaration).kernel_version)], NOW)
    assert len(to(DECISIONS, result)) == 1


def test_a_block_of_no_declaration_is_refused_and_has_shown_nothing(tmp_path: Path) -> None:
    made = agent(tmp_path, lambda: None)
    with pytest.raises(KernelMismatch):
        made.process([written_by(FeatureSet(declared("62d")).kernel_version)], NOW)
    assert made._held[0].unseen({("transactions", 0, 0)})


def test_a_block_is_read_again_where_nobody_can_say_what_is_published(tmp_path: Path) -> None:
    def fail() -> None:
        raise TopicError("topic control is missing")

    with pytest.raises(SessionError, match="cannot be seen: topic control is missing"):
        agent(tmp_path, fail).process([written_by(FeatureSet(declared("63d")).kernel_version)], NOW)
