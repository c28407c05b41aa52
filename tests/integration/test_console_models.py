"""The console's work on models, on a real broker: scores of a run computed anew, labels, and the status line."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime

import msgspec
import numpy as np
import pytest

from pipeline.console import followed
from pipeline.console.explanation import Explainer
from pipeline.console.status import ClusterView
from pipeline.console.views import LabelView, LearnedView, StatusView, StoreFigures
from pipeline.features.built_in import KERNEL_REVISION
from pipeline.models.publish import ControlWriter, VersionToPublish, publish_active
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from schemas.messages import Alert, Decision, Label, LearningSwitch
from schemas.topics import EXAMPLES, LABELS, TRANSACTIONS
from tests.helpers.champion import LARGE_AMOUNT, policy, publish_champion
from tests.helpers.logs import after, golden, label, microseconds
from tests.helpers.models import example, small_model
from tests.helpers.topics import Cluster, Key, Starter, shop
from tests.helpers.waiting import TIMEOUT_S, eventually
from tests.unit.engine.test_engine_models import other_model

pytestmark = pytest.mark.broker


def view_of(key: Key, at: datetime, known: str = "fraud", **changes: object) -> LabelView:
    message = msgspec.json.decode(label(0, at, known, card_id=key[0], transaction_id=key[1], **changes), type=Label)
    return LabelView(message, LABELS.name, microseconds(at), holds=True)


def trained(as_of: datetime, maturity_days: float) -> LightGBMModel:
    """A version as `fraud-pipeline retrain` makes one, by what it says of its labels."""
    metadata = {"as_of_us": microseconds(as_of), "labels": {"maturity_days": maturity_days}}
    return LightGBMModel(other_model()._text, metadata=metadata)


class Figures:
    """A store whose figures a test sets."""

    def __init__(self) -> None:
        self.found = StoreFigures(0, 3, 8, 6, {})

    def figures(self) -> StoreFigures:
        return self.found


@pytest.fixture(autouse=True)
def _long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers of a busy machine may take their time, and are not away for that."""
    for name in ("status.READ_S", "status.FIRST_S", "explanation.READ_S"):
        monkeypatch.setattr(f"pipeline.console.{name}", TIMEOUT_S)


@contextmanager
def status_line(cluster: Cluster, store: Figures, bootstrap: str | None = None) -> Iterator[ClusterView]:
    with closing(ClusterView(bootstrap or cluster.bootstrap, cluster.settings, store.figures)) as line:
        yield line


def test_scores_are_computed_anew_to_the_last_bit_through_learning_and_a_promotion(
    cluster: Cluster, start: Starter
) -> None:
    settings = cluster.settings.model_copy(update={"river_publish_interval_s": 0.0, "decision_features": "all"})
    cluster.publish(policy(blend=0.7))
    bought = shop(cluster, range(60), seed=1)
    worker = start(settings)

    def decided() -> None:
        cluster.flush()
        worker.until(lambda: len(cluster.decisions()) >= len(bought))

    decided()
    explainer, progress = (
        Explainer(cluster.bootstrap, settings),
        ClusterView(cluster.bootstrap, settings, Figures().figures),
    )
    key = next(key for key in bought if int(key[1][1:]) % 25 == 24)
    before = progress.learned(view_of(key, after(1)), None)
    assert before.river is None
    assert "Counts since 2024-03-02 00:00 UTC." in before.sentence
    assert "has not learned it yet" in before.sentence

    def learns(keys: list[Key], known: str, at: datetime) -> None:
        published = len(cluster.versions("river"))
        for key in keys:
            cluster.say(key, at, known)
        cluster.flush()
        worker.until(lambda: len(cluster.versions("river")) > published)

    # Enough of them for the scale, so that weights move.
    learns([key for key in bought if int(key[1][1:]) % 25 != 24], "legitimate", after(1))
    learns([key for key in bought if int(key[1][1:]) % 25 == 24], "fraud", after(1))
    for step in range(3):
        more = shop(cluster, range(100 + 60 * step, 160 + 60 * step), seed=2 + step)
        bought |= more
        decided()
        learns(list(more), "fraud" if step else "legitimate", after(2 + step))
    second = policy(0.4, blend=0.3, lightgbm_version=other_model().version)
    publish_champion(cluster.bootstrap, settings, other_model(), second)
    worker.until_active("lightgbm", other_model().version)
    bought |= shop(cluster, range(300, 340), seed=9)
    decided()

    decisions = cluster.decisions()
    assert {decision.versions.lightgbm for decision in decisions} == {small_model().version, other_model().version}
    assert len({decision.versions.river for decision in decisions}) >= 3
    assert max(abs((decision.river_logit or 0.0) - decision.logit) for decision in decisions) > 1e-3
    alert = cluster.alerts()[0]
    check_explanations(explainer, alert, decisions)

    late = progress.learned(view_of(key, after(200)), decisions[0])
    assert late.late is not None
    assert late.sentence.startswith("It comes too late to count")
    decision = next(found for found in decisions if found.transaction_id == key[1] and found.card_id == key[0])
    check_progress(cluster, progress, key, decision)
    progress.close()


def check_explanations(explainer: Explainer, alert: Alert, decisions: list[Decision]) -> None:
    for decision in decisions:
        found = explainer.explain(decision)
        assert (found.note, found.equal, found.scored_again) == (None, True, decision.score)
        assert sum(row.share for row in found.rows) == pytest.approx(found.logit, abs=1e-9)
        assert float(sigmoid(np.array([found.logit]))[0]) == decision.score
        assert found.versions["river"] == decision.versions.river
    changed = dict(decisions[0].features or {})
    changed["amount"] = LARGE_AMOUNT * 7
    other = explainer.explain(msgspec.structs.replace(decisions[0], features=changed))
    assert other.equal is False or other.scored_again == decisions[0].score
    # From several threads, with nothing kept.
    anew = Explainer(explainer._versions._bootstrap, explainer._versions._settings)
    results: list[bool | None] = []
    threads = [
        threading.Thread(target=lambda: results.extend(anew.explain(each).equal for each in decisions[:40]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 160

    versions = decisions[0].versions
    damaged = VersionToPublish("lightgbm", "0" * 12, b'{"kind":"lightgbm"}')
    publish_active(explainer._versions._bootstrap, explainer._versions._settings, [damaged])
    digest = payload_digest(damaged.payload)[:12]
    for changes, why in (
        ({"lightgbm": digest}, "Its versions cannot be read: the payload is not a LightGBM version"),
        ({"lightgbm": "0" * 12}, "lightgbm version 000000000000 cannot be read"),
        ({"policy": "0" * 12}, "policy version 000000000000 cannot be read"),
        ({"river": "nowhere@7"}, "the online model nowhere@7 cannot be found"),
        ({"kernel": "1-old"}, "computed by kernel 1-old"),
    ):
        lost = msgspec.structs.replace(decisions[0], versions=msgspec.structs.replace(versions, **changes))
        found = explainer.explain(lost)
        assert why in (found.note or "")
        assert (found.rows, found.scored_again, found.equal) == ((), None, None)
        assert float(sigmoid(np.array([found.logit]))[0]) == pytest.approx(decisions[0].score)
    # Under another declaration names keep their meaning.
    other_kernel = msgspec.structs.replace(versions, kernel=f"{KERNEL_REVISION}-00000000")
    found = explainer.explain(msgspec.structs.replace(decisions[0], versions=other_kernel))
    assert found.equal is True
    assert "another declaration of features" in (found.note or "")
    blind = explainer.explain(msgspec.structs.replace(decisions[0], features=None))
    assert "no features" in (blind.note or "")


def check_progress(cluster: Cluster, progress: ClusterView, key: Key, decision: Decision) -> None:
    def now() -> LearnedView:
        return progress.learned(view_of(key, after(1)), decision)

    eventually(lambda: now().river is not None)
    offset = next(n for n, at in enumerate(cluster.examples()) if (at.card_id, at.transaction_id) == key)
    name = now().river or ""
    assert int(name.rpartition("@")[2]) > offset
    assert name in cluster.versions("river")
    assert now().sentence == (
        f"Counts since 2024-03-02 00:00 UTC. The online model has learned it (version {name}). "
        "LightGBM learns it with its next version."
    )
    # What somebody says otherwise is not learned yet, and what does not hold never is.
    assert progress.learned(view_of(key, after(1), "legitimate"), decision).river is None
    assert "Another label" in progress.learned(view_of(key, after(1))._replace(holds=False), decision).sentence
    assert "no model learns it" in progress.learned(view_of(key, after(1), source="rule"), decision).sentence
    # A version that was trained before the label came, one for which it was too young, and one that holds it.
    for version, holds in (
        (trained(after(0.5), 0.1), False),
        (trained(after(3), 9), False),
        (trained(after(9), 7), True),
    ):
        publish_active(
            cluster.bootstrap,
            cluster.settings,
            [VersionToPublish("lightgbm", version.version, version.to_payload())],
        )
        eventually(lambda version=version: progress._followed.versions()["lightgbm"] == version.version)
        assert (f"LightGBM version {version.version} was trained with it." in now().sentence) is holds
    switch = LearningSwitch(frozen=True, by="mona", reason="a test", switched_at=after(1))
    ControlWriter(cluster.bootstrap, cluster.settings).control(switch)
    eventually(
        lambda: "Learning is frozen" in progress.learned(view_of(key, after(1), "legitimate"), decision).sentence
    )


def test_what_lies_far_back_and_what_is_held_is_said_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "EXAMPLES_BEFORE", 3)
    written = [example(number, held=number == 5, label="fraud") for number in range(6)]
    for item in written:
        cluster.write(EXAMPLES, msgspec.json.encode(item), b"card", after(), partition=0)
    cluster.flush()
    # What cannot be read stops nothing.
    cluster.write(EXAMPLES, b"{", b"card", after(), partition=0)
    cluster.flush()

    def sentence(number: int) -> str:
        item = written[number]
        return progress.learned(view_of((item.card_id, item.transaction_id), item.known_at), None).sentence

    with closing(ClusterView(cluster.bootstrap, cluster.settings, Figures().figures)) as progress:
        assert "is not looked at any more" in sentence(0)
        assert "has not learned it yet" in sentence(4)
        assert "held as part of a surge" in sentence(5)


def test_the_status_line_counts_what_topics_hold(cluster: Cluster) -> None:
    store = Figures()
    with status_line(cluster, store) as line:
        first = line.figures()
        assert (first.failure, first.lag, first.versions, first.budget, first.dead_letters) == (None, None, {}, None, 0)
        assert (first.alerts, first.precision, first.labelled) == (3, 0.75, 8)
        item = policy(metadata={"alerts_per_day": 40.0})
        publish_champion(cluster.bootstrap, cluster.settings, small_model(), item)
        for number in range(20):
            cluster.buy(number, after(minutes=number), card_id=f"c{number % 5}")
        cluster.flush()
        ends: dict[int, int] = {}
        for record in cluster.read(TRANSACTIONS):
            ends[record.partition] = record.offset + 1
        behind = dict(ends)
        behind[max(ends)] -= 3
        store.found = store.found._replace(source_ends=behind, decisions=500)

        def shows(view: StatusView) -> bool:
            # More is decided at every look: the rate is that of a few seconds.
            store.found = store.found._replace(decisions=store.found.decisions + 1)
            return view.lag == 3 and view.budget == 40.0 and view.rate > 0

        eventually(lambda: shows(line.figures()))
        assert line.figures().versions == {"lightgbm": small_model().version, "policy": item.version}
        # Ahead of what brokers answered: nothing waits.
        store.found = store.found._replace(source_ends={number: end + 5 for number, end in ends.items()})
        eventually(lambda: line.figures().lag == 0)


def test_without_brokers_the_status_line_keeps_its_figures_and_says_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("status.READ_S", "explanation.READ_S"):
        monkeypatch.setattr(f"pipeline.console.{name}", 1.0)
    store = Figures()
    with status_line(cluster, store, "127.0.0.1:1") as line:
        eventually(lambda: line.figures().failure is not None)
        assert "no broker answers at 127.0.0.1:1" in (line.figures().failure or "")
        assert line.figures().alerts == 3
    assert Explainer("127.0.0.1:1", cluster.settings).explain(a_pair()[1]).note is not None


def a_pair() -> tuple[Alert, Decision]:
    return golden("alert", Alert), golden("decision", Decision)
