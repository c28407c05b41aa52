"""Rows as they were served: what is read of `features` and `accepted-labels`, bit for bit and once."""

import msgspec
import numpy as np
import pytest

from pipeline.features.catalogue import FEATURES
from pipeline.learning.labels import NO_LABEL, source_rank
from pipeline.learning.regimes import NEVER_US
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from pipeline.training.served import ServedLog
from schemas.messages import Versions
from schemas.records import Record
from schemas.times import US_PER_DAY, US_PER_HOUR
from tests.helpers.blocks import features_block
from tests.helpers.logs import feature_row
from tests.helpers.models import small_model
from tests.helpers.served import DELAY_US, feature_records, label_records, simulated

HISTORY = simulated(40, cards=150, merchants=300)
RECORDS = feature_records(HISTORY, small_model())


def log(window_days: float = 120.0) -> ServedLog:
    return ServedLog(Settings(), window_days)


def test_rows_are_what_the_models_saw_whatever_the_order_of_reading() -> None:
    served = log()
    served.add_features(RECORDS[::2])
    served.add_features(RECORDS[::-1])  # every second record for a second time
    rows = served.rows()
    np.testing.assert_array_equal(rows.features.view(np.int64), HISTORY.features.view(np.int64))
    np.testing.assert_array_equal(rows.event_time_us, HISTORY.event_time_us)
    np.testing.assert_array_equal(rows.logit, small_model().logit(HISTORY.features))
    assert rows.served_by(small_model().version).all()
    assert not rows.served_by("another").any()
    cards = HISTORY.frame["card_id"].to_numpy()
    assert len({*zip(cards, rows.card.tolist(), strict=True)}) == len({*cards}) == len({*rows.card.tolist()})
    assert len({*rows.identity.tolist()}) == len(rows)
    assert (rows.reported_us == NEVER_US).all()


def test_the_last_word_counts_and_a_fraud_is_dated_by_its_first_report() -> None:
    frauds = np.flatnonzero(HISTORY.fraud)[:30].tolist()
    served = log()
    served.add_labels(label_records(HISTORY, frauds[:10]))
    served.add_features(RECORDS)
    assert np.flatnonzero(served.rows().reported_us < NEVER_US).tolist() == frauds[:10]
    # The same labels, known a day later, change nothing.
    stamped = []
    for record in label_records(HISTORY, frauds[:10]):
        *others, (name, known_at) = record.headers
        later = str(int(known_at or b"") + US_PER_DAY).encode()
        stamped.append(msgspec.structs.replace(record, headers=(*others, (name, later))))
    served.add_labels(stamped)
    served.add_labels(label_records(HISTORY, frauds[20:]))
    served.add_labels(label_records(HISTORY, frauds[20:21], "legitimate"))  # as new, and less severe
    served.add_labels(label_records(HISTORY, frauds[11:12], "disputed"))
    rows = served.rows()
    fraud = frauds[:10] + frauds[20:]
    assert np.flatnonzero(rows.reported_us < NEVER_US).tolist() == fraud
    np.testing.assert_array_equal(rows.reported_us[fraud], HISTORY.event_time_us[fraud] + DELAY_US)
    expected = np.full(len(rows), NO_LABEL)
    expected[fraud] = source_rank("analyst")
    np.testing.assert_array_equal(rows.reported_by, expected)
    as_of_us = int(rows.reported_us[frauds[5]])
    assert rows.training_set(as_of_us).fraud.tolist() == (rows.reported_us <= as_of_us).tolist()
    assert np.shares_memory(rows.training_set(as_of_us).features, rows.features)


def test_a_training_in_the_past_does_not_know_what_was_corrected_later() -> None:
    frauds = np.flatnonzero(HISTORY.fraud)[:10].tolist()
    served = log()
    served.add_features(RECORDS)
    served.add_labels(label_records(HISTORY, frauds))
    corrected = label_records(HISTORY, frauds[:3], "legitimate", delay_us=DELAY_US + US_PER_DAY)
    served.add_labels(corrected)
    rows = served.rows()
    assert np.flatnonzero(rows.reported_us < NEVER_US).tolist() == frauds[3:]
    reported_us = int(HISTORY.event_time_us[frauds[0]]) + DELAY_US
    reported = [row for row in frauds if HISTORY.event_time_us[row] + DELAY_US <= reported_us]
    assert np.flatnonzero(rows.training_set(reported_us).fraud).tolist() == reported
    assert frauds[0] not in np.flatnonzero(rows.training_set(reported_us + US_PER_DAY).fraud)
    part = rows.take(slice(frauds[0], frauds[-1] + 1))
    assert part.training_set(NEVER_US).fraud.sum() == 7


def test_only_the_window_and_this_kernel_s_rows_are_held() -> None:
    served = log(window_days=10)
    other = feature_row(1, versions=Versions(lightgbm="l", river="r", policy="p", kernel="0-0", rates="1"))
    served.add_features([Record("features", 5, 0, 0, None, features_block([other]))])
    served.add_features([Record("features", 5, 1, 0, None, b"no block"), Record("features", 5, 2, 0, None, None)])
    assert (len(served.rows()), served.other_kernel, served.stream_time_us) == (0, 1, None)
    for record in RECORDS:
        served.add_features([record])
    stream_time_us = int(HISTORY.event_time_us[-1])
    kept = HISTORY.event_time_us >= stream_time_us - 10 * US_PER_DAY
    np.testing.assert_array_equal(served.rows().features, HISTORY.features[kept])
    recent = served.newest(stream_time_us - US_PER_DAY)
    np.testing.assert_array_equal(
        recent.event_time_us, HISTORY.event_time_us[HISTORY.event_time_us >= stream_time_us - US_PER_DAY]
    )
    assert served.rows().features.shape[1] == len(FEATURES)


def test_quarantined_rows_are_left_out() -> None:
    served = log()
    served.add_features([msgspec.structs.replace(RECORDS[0], skipped_rows=(0, 3))])
    np.testing.assert_array_equal(served.rows().event_time_us, np.delete(HISTORY.event_time_us[:400], [0, 3]))
    np.testing.assert_array_equal(served.rows().logit, np.delete(small_model().logit(HISTORY.features[:400]), [0, 3]))


def test_rows_teach_once_they_are_mature() -> None:
    served = log()
    served.add_features(RECORDS)
    rows = served.rows()
    now_us = int(rows.event_time_us[-1])
    split = rows.split(now_us, 7 * US_PER_DAY, 5.0)
    assert rows.event_time_us[split.validation].max() <= now_us - 7 * US_PER_DAY
    assert rows.event_time_us[split.training].max() < now_us - 12 * US_PER_DAY
    with pytest.raises(ModelError, match="leave 0 transactions"):
        rows.split(now_us, 60 * US_PER_DAY, 5.0)


def test_a_first_date_that_is_wrong_moves_no_window() -> None:
    first_us = int(HISTORY.event_time_us[0])
    times_us = [first_us + hours * US_PER_HOUR for hours in (600_000, 1, 2, 3, 4)]
    moved = HISTORY._replace(event_time_us=np.array(times_us))
    records = [record for row in range(5) for record in feature_records(moved, small_model(), rows=slice(row, row + 1))]
    served = log(window_days=1)
    for record in records:
        served.add_features([record])
    assert served.stream_time_us == times_us[-1]
    assert served.rows().event_time_us.tolist() == times_us[1:]
    # Neither does one of another partition, whose first it is.
    served.add_features([msgspec.structs.replace(records[0], partition=7)])
    assert served.rows().event_time_us.tolist() == times_us[1:]


def test_a_date_that_is_wrong_moves_no_window() -> None:
    times_us = [int(HISTORY.event_time_us[0]) + hours * US_PER_HOUR for hours in (1, 2, 600_000, 3, 75, 76, 77, 78)]
    moved = HISTORY._replace(event_time_us=np.array(times_us))
    records = [record for row in range(8) for record in feature_records(moved, small_model(), rows=slice(row, row + 1))]
    served = log(window_days=1)
    served.add_features(records[:4])
    assert served.stream_time_us == times_us[3]
    assert served.rows().event_time_us.tolist() == [*times_us[:2], times_us[3]]
    assert served.newest(times_us[1]).event_time_us.tolist() == [times_us[1], times_us[3]]
    # Days without traffic end with three decisions in a row, none of which is lost.
    served.add_features(records[4:6])
    assert len(served.rows()) == 3
    served.add_features(records[6:])
    assert served.rows().event_time_us.tolist() == times_us[4:]
