"""Declarations of features on a cluster: published, followed by workers that run, refused, and activated again."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.broker.local import STATE_NAME, read_json, running_broker, serving
from pipeline.decision.rules import PolicyRule
from pipeline.demo.processes import settings_environment
from pipeline.features.active import active_declaration
from pipeline.features.catalogue import ACTIVE, FEATURES
from pipeline.features.known_sets import is_known
from pipeline.models.published_files import PublishedFiles
from pipeline.settings.features_file import VARIABLE, features_of
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import policy
from tests.helpers.logs import after
from tests.helpers.topics import Cluster, Starter, once
from tests.helpers.waiting import eventually
from tests.helpers.worker import FAUST, ROOT, printed_json

pytestmark = pytest.mark.broker

ABROAD = """
extends = "all"

[[features]]
entity = "card"
aggregate = "distinct"
field = "country"
windows = ["7d"]
where = "country <> 'DE'"

[[features]]
entity = "merchant"
aggregate = "count"
field = "country"
windows = ["7d"]
where = "country <> 'DE'"
"""
OF_MERCHANT, CARRIED = "merchant_count_country_7d", "input_f94f2f43"
OWN = "card_distinct_country_7d"
COUNTRIES = ("DE", "FR", "IT", "ES")


def written(directory: Path, text: str = ABROAD) -> str:
    file = directory / "declared.toml"
    file.write_text(text)
    return str(file)


def bought(cluster: Cluster, numbers: range) -> None:
    for number in numbers:
        at, country = after(seconds=number), COUNTRIES[number % len(COUNTRIES)]
        cluster.buy(number, at, card_id=f"c{number % 3}", merchant_id=f"m{number % 2}", country=country)
    cluster.flush()


def active_digest(cluster: Cluster) -> str | None:
    published = PublishedFiles(cluster.bootstrap, cluster.settings)
    published.refresh()
    active = published.active_declaration()
    return None if active is None else active.digest


def test_workers_follow_what_is_published_and_decide_each_transaction_once(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish()
    bought(cluster, range(20))
    # The card agent notices by itself too.
    settings = cluster.settings
    workers = [
        start(settings, instance="card", agents="card"),
        start(settings, *FAUST, "--loglevel=info", instance="score", agents="score"),
    ]
    workers[1].until(lambda: len(cluster.decisions()) >= 20)
    assert active_digest(cluster) == active_declaration().digest, "the first start publishes its own"
    file = written(tmp_path)
    said = cluster.command("features", "publish", file, code=0).output
    assert said.splitlines()[1:] == [
        f"Added: {OWN}, {OF_MERCHANT}.",
        "Removed: none.",
        "Workers rebuild their windows from the topics.",
    ]
    # Some are profiled by the former image and scored by the next one.
    bought(cluster, range(20, 40))
    digest = active_digest(cluster)
    for worker in workers:
        worker.until_it_says(f"declaration of features {digest} is active")
    bought(cluster, range(40, 60))
    workers[1].until(lambda: len(cluster.decisions()) >= 60)
    for worker in workers:
        assert worker.stop() == 0, worker.output
        assert worker.output.count("starts again with it") == 1
    decisions = cluster.decisions()
    assert once(decisions)
    assert len(decisions) == 60
    features = {message.transaction_id: message.features for message in cluster.features()}
    assert all(OWN not in features[f"t{number}"] for number in range(20))
    assert all({*features[f"t{number}"]} == {*FEATURES, CARRIED, OWN, OF_MERCHANT} for number in range(40, 60))
    # By then each card was in the three countries abroad.
    assert {features[f"t{number}"][OWN] for number in range(50, 60)} == {3.0}
    # What the declaration of this process has too is the same by either.
    again = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    again.run()
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (60, [])
    # By the other one, those that it has decided are: no block of before carries what its windows read.
    under = {**settings_environment(cluster.settings), VARIABLE: file}
    found = printed_json("tests.chaos.declarations", "backtest", environment=under)
    assert found["compared"] == 60
    assert {*found["causes"]} == {"other rules"}, found
    assert 20 <= found["causes"]["other rules"] <= 40


def test_a_worker_starts_with_the_active_declaration(cluster: Cluster, start: Starter, tmp_path: Path) -> None:
    cluster.publish()
    cluster.command("features", "publish", written(tmp_path), code=0)
    worker = start(cluster.settings)
    bought(cluster, range(8))
    worker.until(lambda: len(cluster.decisions()) == 8)
    assert worker.stop() == 0, worker.output
    assert worker.output.count("starts again with it") == 1
    assert all(OWN in message.features for message in cluster.features())
    again = start(cluster.settings, features_file=Path(written(tmp_path)))
    bought(cluster, range(8, 9))
    again.until(lambda: len(cluster.decisions()) == 9)
    assert again.stop() == 0, again.output
    assert "starts again" not in again.output
    assert "from a snapshot" in again.output, "it holds what the other one did"


def test_a_file_that_is_named_by_the_digest_of_another_one_ends_the_worker(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.command("features", "publish", written(tmp_path), code=0)
    file = cluster.settings.data_dir / "features" / f"{active_digest(cluster)}.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(active_declaration().content)
    worker = start(cluster.settings, features_file=file)
    assert worker.code() == 1
    assert "which is not the active declaration" in worker.output


def test_an_older_declaration_can_be_published_again(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('extends = "all"\n')
    cluster.command("features", "publish", str(other), code=0)
    cluster.command("features", "publish", written(tmp_path), code=0)
    first = features_of(other)
    assert active_digest(cluster) != first.digest
    said = cluster.command("features", "publish", str(other), code=0).output
    assert said.splitlines()[1:3] == ["Added: none.", f"Removed: {OWN}, {OF_MERCHANT}."]
    assert active_digest(cluster) == first.digest
    assert "is active already" in cluster.command("features", "publish", str(other), code=0).output
    # A worker that starts at the same moment takes nobody's place.
    published = PublishedFiles(cluster.bootstrap, cluster.settings)
    published.publish_first(features_of(Path(written(tmp_path))))
    assert active_digest(cluster) == first.digest
    lines = cluster.command("features", "history", code=0).output.splitlines()
    assert [line.split(maxsplit=3)[3] for line in lines] == [
        f"{first.digest}  {ACTIVE.count} features",
        f"{features_of(Path(written(tmp_path))).digest}  {ACTIVE.count + 2} features",
        f"{first.digest}  {ACTIVE.count} features *",
    ]
    assert all(len(line) < 80 for line in lines)


def test_no_declaration_is_published_that_an_active_version_or_a_name_contradicts(
    cluster: Cluster, tmp_path: Path
) -> None:
    stated = PolicyRule(code="own", feature="merchant_count_1d", op=">", value=1e9, sentence="It is busy.")
    cluster.publish(policy(old_rules=(stated,)))
    cluster.command("features", "publish", written(tmp_path), code=0)
    lacking = written(tmp_path, 'extends = "none"\n')
    refused = cluster.command("features", "publish", lacking, code=1).output
    assert "the active LightGBM version" in refused
    assert "which this declaration lacks" in refused
    changed = written(tmp_path, ABROAD.replace("'DE'", "'FR'"))
    refused = cluster.command("features", "publish", changed, code=1).output
    assert f"{OWN} is something else in declaration" in refused
    assert "give the changed feature another name" in refused
    assert len(refused.splitlines()) == 1


def test_other_programs_read_blocks_of_what_is_published(cluster: Cluster, tmp_path: Path) -> None:
    from pipeline.features.feature_set import FeatureSet

    file = written(tmp_path, ABROAD.replace("'DE'", "'PT'"))
    kernel = FeatureSet(features_of(Path(file))).kernel_version
    cluster.command("features", "publish", file, code=0)
    PublishedFiles(cluster.bootstrap, cluster.settings).refresh()
    assert is_known(kernel)


def test_an_embedded_broker_outlives_the_image_of_its_process_and_not_the_process(tmp_path: Path) -> None:
    first = """
        import os, sys
        from pathlib import Path
        from pipeline.broker import provide_broker
        from pipeline.settings import Settings

        context = provide_broker(Settings(data_dir=Path(sys.argv[1])))
        context.__enter__().hand_over()
        context.__exit__(None, None, None)
        os.execv(sys.executable, [sys.executable, "-c", "print('next', flush=True); input()"])
    """
    code = "\n".join(line.strip() for line in first.splitlines())
    environment = {name: value for name, value in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"next\n"
        # It would go on for a moment without the pipe by which its guard hears of the end of the process.
        guard = psutil.Process(read_json(tmp_path / "kafka" / STATE_NAME)["pid"]).parent()
        assert guard is not None
        pipe = Path(f"/proc/{guard.pid}/fd/0").readlink()
        assert pipe in {file.readlink() for file in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert running_broker(tmp_path / "kafka") is not None
    finally:
        process.communicate(b"\n")
    eventually(lambda: serving(tmp_path / "kafka") is None)
