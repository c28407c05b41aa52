"""The examples that versions have learned, by the offsets and the times that topics name."""

import pytest

from pipeline.console.followed import Deadline, FollowedVersions, TrainingData
from pipeline.kafka.cluster.errors import ClusterUnreachable
from pipeline.settings import Settings

DAY_US = 86_400_000_000


def test_the_first_version_behind_an_example_has_learned_it() -> None:
    followed = FollowedVersions("127.0.0.1:1", Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    followed.rivers.extend([(0, "v@0"), (4, "v@4"), (7, "v@7"), (9, "v@9")])
    assert [followed.river_behind(offset) for offset in (3, 4, 6, 8, 9)] == ["v@4", "v@7", "v@7", "v@9", None]
    assert followed.versions() == {"river": "v@9"}


def test_training_data_hold_what_was_known_of_mature_transactions_and_early_frauds() -> None:
    data = TrainingData("v", as_of_us=20 * DAY_US, maturity_us=7 * DAY_US, early=False)
    assert data.holds(13 * DAY_US, 20 * DAY_US, "fraud")
    assert not data.holds(13 * DAY_US, 20 * DAY_US + 1, "fraud")
    assert not data.holds(13 * DAY_US + 1, 20 * DAY_US, "fraud")
    early = data._replace(early=True)
    assert early.holds(19 * DAY_US, 20 * DAY_US, "fraud")
    assert not early.holds(19 * DAY_US, 20 * DAY_US, "legitimate")
    assert not early.holds(19 * DAY_US, 20 * DAY_US + 1, "fraud")


def test_a_deadline_ends_waits_for_brokers() -> None:
    limit = Deadline("127.0.0.1:1")
    limit.begin(60.0)
    limit()
    limit.begin(-1.0)
    with pytest.raises(ClusterUnreachable, match="no broker answers at 127"):
        limit()
    limit.begin(60.0)
    limit.ending.set()
    with pytest.raises(ClusterUnreachable):
        limit()
