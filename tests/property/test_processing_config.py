"""A replay under processing configs that changed leaves the state that was live, whatever the config is by now."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decision_records import read_feature_messages
from schemas.codec import encode
from schemas.mapping import Mapper
from schemas.messages import CardConfig, FeedbackConfig, ProcessingConfig, ProfiledTransaction, Progress
from schemas.money import RateTable, load
from schemas.records import Record
from schemas.times import US_PER_DAY, US_PER_SECOND
from schemas.topics import DEAD_LETTERS, TRANSACTIONS
from tests.helpers.logs import LabelLog, Log, after, label, to, transaction
from tests.helpers.mappings import core, foreign
from tests.property.test_rollback import NOW, Batches, Kernel, Run, comparable, cut, own_values
from tests.reference.identities import transaction_digest
from tests.unit.engine.test_engine_card import interleaved
from tests.unit.engine.test_engine_feedback import happenings

Options = Any
TOLERANCES_S = (0, 300, 7_200)
HORIZONS_DAYS = (2, 10, 30)
AHEAD_S = (-3_600, 3_600, 200)
"""By how much a clock is ahead of the broker's, now and then."""


def table(version: str, **rates: str) -> RateTable:
    currencies = {code: {"digits": 2, "rate": rate} for code, rate in {"EUR": "1", **rates}.items()}
    return load(json.dumps({"version": version, "base": "EUR", "currencies": currencies}).encode())


TABLES = (table("1"), table("2", GBP="1.17"), table("3", GBP="1.2", CHF="1.06"))
MAPPINGS = (None, core(), core((b"core-1", b"core-2"), (b'"payload.after.shop"', b'"payload.after.card.token"')))


class Agent(NamedTuple):
    """A kernel that settings steer."""

    start: Callable[..., Any]
    random_options: Callable[[np.random.Generator], Options]
    batches: Callable[[np.random.Generator], Batches]
    under: Callable[[Options, ProcessingConfig], Options]
    """Today's options under the config that a record of ``progress`` names."""

    def kernel(self, options: Options) -> Kernel:
        """A worker that was started with ``options``."""
        return Kernel(
            lambda store, loaded: self.start(options, store, loaded),
            lambda state, records: state.process(records, NOW),
            self.batches,
        )


def card_batches(random: np.random.Generator) -> Batches:
    """Three months of three currencies, repeats after days and weeks, wrong clocks, and labels early and late."""
    transactions, labels = Log(TRANSACTIONS), LabelLog()
    reported = []
    for number, days in enumerate(np.sort(random.uniform(0, 90, 400)).tolist()):
        ahead_s = int(random.choice(AHEAD_S)) if random.random() < 0.2 else 0
        if random.random() < 0.2 and number > 10:
            value = transactions.records[number - int(random.choice([1, 5, 10, min(number, 60)]))].value
        else:
            value = transaction(
                number,
                after(days, seconds=ahead_s),
                card_id=f"c{random.integers(3)}",
                merchant_id=f"m{random.integers(3)}",
                currency=str(random.choice(["EUR", "GBP", "CHF"])),
            )
            if random.random() < 0.5:
                value = foreign(value)
        transactions.append(value, after(days))
        if random.random() < 0.6:
            reported.append((max(days + float(random.choice([-1.0, 0.5, 3, 9, 12, 25])), 0.0), number))
    for days, number in sorted(reported):
        value = stated(transactions.records[number].value)
        ahead_s = int(random.choice(AHEAD_S)) if random.random() < 0.2 else 0
        known = str(random.choice(["fraud", "legitimate"]))
        spoken = label(0, after(days, seconds=ahead_s), known, **value)
        labels.append(spoken, after(days))
    return [[*bought, *labelled] for bought, labelled in interleaved(transactions.records, labels.records, random)]


def stated(value: bytes | None) -> dict[str, str]:
    """Card and transaction of a record, whichever way its producer wrote it."""
    fields = json.loads(value or b"")
    if "payload" in fields:
        after = fields["payload"]["after"]
        return {"transaction_id": str(after["id"]), "card_id": after["card"]["token"]}
    return {name: fields[name] for name in ("transaction_id", "card_id")}


def card_config(random: np.random.Generator) -> CardOptions:
    rates, mapping = TABLES[int(random.integers(len(TABLES)))], MAPPINGS[int(random.integers(len(MAPPINGS)))]
    return CardOptions(
        rates=rates,
        future_tolerance_us=int(random.choice(TOLERANCES_S)) * US_PER_SECOND,
        deduplication_us=int(random.choice(HORIZONS_DAYS)) * US_PER_DAY,
        label_grace_us=int(random.choice(HORIZONS_DAYS)) * US_PER_DAY,
        partitions=1,
        mapper=None if mapping is None else Mapper(mapping, rates),
    )


def card_under(options: CardOptions, config: ProcessingConfig) -> CardOptions:
    assert isinstance(config, CardConfig)
    (rates,) = [
        table for table in TABLES if (table.version, table.digest) == (config.rates_version, config.rates_digest)
    ]
    mapping = next(item for item in MAPPINGS if ("" if item is None else item.digest) == config.mapping_digest)
    return options.under(config, rates, mapping)


def feedback_batches(random: np.random.Generator) -> Batches:
    """Three months of decisions and labels."""
    return cut([record for _, record in happenings(random, 300)], random)


def feedback_config(random: np.random.Generator) -> FeedbackConfig:
    return FeedbackConfig(
        label_horizon_us=int(random.choice(HORIZONS_DAYS)) * US_PER_DAY,
        maturity_us=int(random.choice(HORIZONS_DAYS)) * US_PER_DAY,
        negative_sample_rate=float(random.choice([0.1, 0.3, 1.0])),
        reported_share=float(random.choice([0.5, 0.8, 1.0])),
    )


def feedback_under(_: FeedbackConfig, config: ProcessingConfig) -> FeedbackConfig:
    assert isinstance(config, FeedbackConfig)
    return config


def config_of(options: Options) -> Any:
    """What a marker states of a worker's options."""
    return options if isinstance(options, FeedbackConfig) else options.config


AGENTS = {
    "card": Agent(
        lambda options, store, loaded: CardPartition(options, None, store, loaded),
        card_config,
        card_batches,
        card_under,
    ),
    "feedback": Agent(FeedbackPartition, feedback_config, feedback_batches, feedback_under),
}


class Lived(NamedTuple):
    """A partition that was worked on by one worker after another, and what a replay of it has to read."""

    run: Run
    recorded: list[tuple[list[Record], bytes]]
    """Batches, each with its record of ``progress``."""
    ahead: Batches


def live(agent: Agent, seed: int) -> Lived:
    """Every few batches the worker is stopped, its settings are changed, and it starts from its snapshot."""
    random = np.random.default_rng(seed)
    batches = agent.batches(random)
    options = agent.random_options(random)
    run = Run(agent.kernel(options))
    recorded = []
    most = 2 * len(batches) // 3
    for batch in batches[:most]:
        if random.random() < 0.3:
            options = agent.random_options(random)
            run.kernel = agent.kernel(options)
            run = run.loaded_again(full=True)
        run.commit(batch)
        recorded.append((batch, encode(Progress(agent="any", starts={}, ends={}, config=config_of(options)))))
    return Lived(run, recorded, batches[most:])


def work(run: Run, records: Sequence[Record], options: Options, now: datetime | None = NOW) -> Result:
    state: Any = run.state
    result: Result = state.process(records, now, options)
    state.commit()
    return result


def replayed(agent: Agent, lived: Lived, today: Options) -> Run:
    """The same from the log alone, by a worker started with ``today``; a marker without config: under these."""
    run = Run(agent.kernel(today))
    for batch, marker in lived.recorded:
        config = msgspec.json.decode(marker, type=Progress).config
        assert work(run, batch, None if config is None else agent.under(today, config), None).outputs == []
    return run


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", AGENTS)
def test_a_replay_leaves_what_was_live_whatever_the_rules_were_and_are(name: str, seed: int) -> None:
    agent = AGENTS[name]
    lived = live(agent, seed)
    today = agent.random_options(np.random.default_rng(seed + 1_000))
    again = replayed(agent, lived, today)
    assert again.store.items() == lived.run.store.items()
    assert own_values(again) == own_values(lived.run)
    lived.run.kernel = agent.kernel(today)
    going_on = lived.run.loaded_again(full=True)
    outputs = 0
    for batch in lived.ahead:
        result = going_on.commit(batch)
        assert comparable(again.commit(batch)) == comparable(result)
        outputs += len(result.outputs)
    assert outputs > 5


@pytest.mark.parametrize("name", AGENTS)
def test_a_replay_by_the_rules_of_today_would_show(name: str) -> None:
    """The test above notices where the config of markers is passed over, or any field of it."""
    agent = AGENTS[name]
    lived = live(agent, 0)
    todays = [agent.random_options(np.random.default_rng(seed)) for seed in range(1_000, 1_006)]
    fields = [field for field in type(config_of(todays[0])).__struct_fields__ if not field.endswith("_version")]
    for field in ("all", *fields):
        assert any(shows(agent, lived, today, field) for today in todays), field


def shows(agent: Agent, lived: Lived, today: Any, field: str) -> bool:
    """Return True if a replay that takes a field of the configs, or all of them, from today's leaves another state."""
    overlooked = []
    for batch, marker in lived.recorded:
        progress = msgspec.json.decode(marker, type=Progress)
        config = None if field == "all" else without(progress.config, field, config_of(today))
        overlooked.append((batch, encode(msgspec.structs.replace(progress, config=config))))
    wrong = replayed(agent, lived._replace(recorded=overlooked), today)
    return wrong.store.items() != lived.run.store.items()


def without(config: Any, field: str, today: Any) -> ProcessingConfig:
    """``config`` with one taken from ``today``; files go by version and content."""
    fields = (field.replace("digest", "version"), field) if field.endswith("_digest") else (field,)
    changed: ProcessingConfig = msgspec.structs.replace(config, **{name: getattr(today, name) for name in fields})
    return changed


def test_a_dead_letter_of_old_stays_one_when_its_currency_becomes_known() -> None:
    before, now = (card_config(np.random.default_rng(0))._replace(rates=rates, mapper=None) for rates in TABLES[:2])
    log = Log(TRANSACTIONS)
    refused = log.append(transaction(1, after(1), currency="GBP"), after(1))
    again = log.append(refused.value, after(2))
    run = Run(AGENTS["card"].kernel(now))
    assert work(run, [refused], before, None).counts == {("dead_letter", "currency_unknown"): 1}
    (output,) = run.commit([again]).outputs
    (message,) = read_messages(output.value)
    assert isinstance(message, ProfiledTransaction)
    assert message.rates_version == "2"


def test_what_was_forgotten_stays_forgotten_when_the_horizon_is_lengthened() -> None:
    """Whether the store has got round to deleting it or not."""
    short = card_config(np.random.default_rng(0))._replace(
        rates=TABLES[0], mapper=None, deduplication_us=US_PER_DAY, label_grace_us=US_PER_DAY
    )
    long = short._replace(deduplication_us=90 * US_PER_DAY)
    log = Log(TRANSACTIONS)
    many = [log.append(transaction(number, after(number / 1_000)), after(1)) for number in range(500)]
    run = Run(AGENTS["card"].kernel(short))
    work(run, many, short)
    work(run, [log.append(transaction(1_000, after(40)), after(40))], short)
    repeats = [log.append(record.value, after(41)) for record in many]
    kept = sum(key[:1] == b"t" for key in run.store.items())
    assert 1 < kept < 501
    result = work(run, repeats, long)
    assert result.counts == {("accepted", ""): 500}
    assert to(DEAD_LETTERS, result) == []


def test_no_decision_is_filed_behind_what_was_deleted() -> None:
    """It would stay there for ever."""
    agent = AGENTS["feedback"]
    short = FeedbackConfig(label_horizon_us=US_PER_DAY, maturity_us=US_PER_DAY, negative_sample_rate=1.0)
    long = msgspec.structs.replace(short, label_horizon_us=60 * US_PER_DAY)
    decisions = [record for _, record in happenings(np.random.default_rng(1), 200) if record.topic == "features"]
    late, *others = decisions
    run = Run(agent.kernel(short))
    for record in others:
        work(run, [record], short)
    work(run, [late], long)
    digests = [transaction_digest(row.card_id, row.transaction_id) for row in read_feature_messages(late.value)]
    assert run.state._segments.find(digests) == {}
