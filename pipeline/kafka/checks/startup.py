"""The checks before a worker's agents start: can this cluster keep what the pipeline promises?

``check_start`` does all of it. A problem refuses the start with what to do about it; where an operator may know better,
a setting makes it a warning.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple, Protocol

from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient, ResourceType

from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.checks.evidence import any_result, borne_out
from pipeline.kafka.checks.kernel_versions import SCORE, members_of_others, start_findings
from pipeline.kafka.checks.offset_checks import ResultOffsets, result_offsets
from pipeline.kafka.cluster.admin import committed_by_group, group_consumer
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import broker_config, brokers, configs_of, describe_topics
from pipeline.kafka.cluster.log_offsets import first_offsets, last_offsets
from pipeline.kafka.cluster.retention import retention_problems
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.internal import OnRefused, not_counted
from pipeline.kafka.records.member import Member
from pipeline.settings import Settings
from schemas.topics import CONTROL, MODELS, PROFILED, PROGRESS, TRANSACTIONS, Topic, has_order

RECHECK_S: Final = 2.0
"""Another worker may commit between two of our questions: what is wrong is looked at twice."""
CLUSTER_BROKERS: Final = 3
CLUSTER_REPLICAS: Final = 3
CLUSTER_INSYNC: Final = 2
_FIRST_BATCH: Final = (
    ". Under at_least_once a worker that died within the group's very first batch leaves this too: if so, starting all "
    "the same only repeats that batch"
)


class StartRefused(RuntimeError):
    """The worker must not start on this cluster as it is; the text says what to do, a line for each problem."""


class Role(Protocol):
    """An agent, as far as the checks need to know it."""

    @property
    def name(self) -> str:
        """Its name, which with the prefix is its group's."""

    @property
    def reads(self) -> tuple[Topic, ...]:
        """Its inputs."""

    @property
    def writes(self) -> tuple[Topic, ...]:
        """Its outputs."""


def check_start(
    bootstrap: str, settings: Settings, roles: Sequence[Role], on_refused: OnRefused = not_counted
) -> list[str]:
    """Check the cluster before the agents of a worker start.

    Args:
        roles: The agents. Their topics must exist (`ensure_topics`).
        on_refused: Counts records of internal topics that cannot be read.

    Returns:
        Warnings, as sentences; none of them stops the worker.

    Raises:
        StartRefused: There are problems; its text has all that were found.
        TopicError: A topic is missing.
        KafkaException: The brokers report an error that does not pass.
    """
    cluster = Cluster(bootstrap, settings, admin_client(bootstrap, settings=settings), on_refused)
    brokers(cluster.client)  # a client's first request should be for metadata: others can take seconds
    checks = (check_partitions, check_retention, check_timestamps, check_replication, check_offsets, check_kernel)
    with ThreadPoolExecutor(len(checks)) as threads:
        # All at once: they mostly wait for brokers. Workers are started together with these, or while one restarts.
        found = list(threads.map(lambda check: check(cluster, roles), checks))
    problems = [problem for of_check in found for problem in of_check.problems]
    warnings = [warning for of_check in found for warning in of_check.warnings]
    if problems:
        raise StartRefused("\n".join(problems))
    return warnings


class Cluster(NamedTuple):
    """The cluster that is looked at, and the settings that it must suit."""

    bootstrap: str
    settings: Settings
    client: AdminClient
    on_refused: OnRefused = not_counted
    """Counts records of internal topics that cannot be read."""


class CheckResult(NamedTuple):
    """The results of a check, as sentences."""

    problems: list[str]
    warnings: list[str]


def _unless_accepted(problems: Sequence[str], settings: Settings, setting: str) -> CheckResult:
    """Return problems, or warnings where the operator has accepted them by a setting; say how to accept them."""
    if getattr(settings, setting):
        return CheckResult([], list(problems))
    how = f"To start all the same: FRAUD_PIPELINE_{setting.upper()}=true."
    return CheckResult([f"{problem}. {how}" for problem in problems], [])


def check_partitions(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    """The topics keyed alike must have the same number of partitions."""
    del roles  # a topic is written by one agent and read by another: all must agree, whichever run here
    names = {
        like: [cluster.settings.topic(topic.name) for topic in cluster.settings.topics if topic.partitions_like == like]
        for like in ("cards", "merchants")
    }
    topics = describe_topics(cluster.client, [name for group in names.values() for name in group])
    problems = []
    for like, group in names.items():
        counts = {name: len(topics[name].partitions) for name in group}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            problems.append(
                f"the topics keyed by {like} differ in their partitions ({listed}): records of one key would lie with "
                "different workers. Delete the pipeline's topics and create them again (their records are lost), or "
                "choose another FRAUD_PIPELINE_TOPIC_PREFIX"
            )
    return CheckResult(problems, [])


def check_retention(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    """Every input must keep its records for as long as a restore may read them."""
    settings = cluster.settings
    topics = list(dict.fromkeys([*(topic for role in roles for topic in role.reads), PROGRESS, MODELS, CONTROL]))
    configs, warnings = configs_of(cluster.client, ResourceType.TOPIC, [settings.topic(t.name) for t in topics])
    there = [topic for topic in topics if settings.topic(topic.name) in configs]
    found = _unless_accepted(retention_problems(there, configs, settings), settings, "accept_short_retention")
    return CheckResult(found.problems, found.warnings + warnings)


def check_timestamps(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    """Check that topics let brokers stamp what producers write, if they are to: a timestamp bounds the event time."""
    settings = cluster.settings
    read = {topic for role in roles for topic in role.reads}
    topics = [settings.topic(topic.name) for topic in (TRANSACTIONS, *settings.topics_of_labels) if topic in read]
    if settings.timestamps != "broker" or not topics:
        return CheckResult([], [])
    # What may not be read is reported by the check of retention, which asks for the same.
    configs, _ = configs_of(cluster.client, ResourceType.TOPIC, topics)
    problems = [
        f"topic {name} has message.timestamp.type={config.get('message.timestamp.type')}, so that a producer whose "
        "clock is ahead takes its partition's time with it, and all that others write after that is late: set it to "
        "LogAppendTime (kafka-configs), or, for a simulated clock, FRAUD_PIPELINE_TIMESTAMPS=producer"
        for name, config in configs.items()
        if config.get("message.timestamp.type") != "LogAppendTime"
    ]
    return _unless_accepted(problems, settings, "accept_producer_timestamps")


def check_replication(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    """On three brokers or more, what is written must outlive one of them."""
    del roles  # the pipeline's promises need all of its topics
    client, settings = cluster.client, cluster.settings
    is_large = len(brokers(client)) >= CLUSTER_BROKERS
    names = [settings.topic(topic.name) for topic in settings.topics]
    configs, warnings = configs_of(client, ResourceType.TOPIC, names)
    wanted = settings.min_insync_replicas or CLUSTER_INSYNC
    problems = []
    for name, topic in describe_topics(client, names).items():
        replicas = min(len(partition.replicas) for partition in topic.partitions)
        insync = int(configs.get(name, {}).get("min.insync.replicas") or 1)
        if insync > replicas:
            problems.append(
                f"topic {name} has min.insync.replicas={insync} and {replicas} replicas, so that nothing can be "
                "written: add replicas (kafka-reassign-partitions), or lower min.insync.replicas."
            )
        elif is_large and replicas < CLUSTER_REPLICAS:
            warnings.append(
                f"topic {name} has {replicas} of {CLUSTER_REPLICAS} replicas: add some (kafka-reassign-partitions), or "
                "the loss of a broker stops or loses it"
            )
        elif is_large and insync < wanted:
            warnings.append(
                f"topic {name} has min.insync.replicas={insync}: set it to {wanted}, or a record may count as written "
                "while one broker alone has it"
            )
    return CheckResult(problems, warnings + (_internal_topics(client) if is_large else []))


def _internal_topics(client: AdminClient) -> list[str]:
    """Return the problems of Kafka's own topics, which hold the offsets and the outcome of every transaction."""
    config, warnings = broker_config(client)
    for name, holds, key in (
        ("__transaction_state", "transactions", "transaction.state.log.replication.factor"),
        ("__consumer_offsets", "offsets", "offsets.topic.replication.factor"),
    ):
        topic = describe_topics(client, [name], missing_ok=True).get(name)
        found = config.get(key) if topic is None else min(len(part.replicas) for part in topic.partitions)
        if found is not None and int(found) == 1:
            warnings.append(
                f"{name} has one replica, so that the loss of a broker loses {holds}: set {key}={CLUSTER_REPLICAS} on "
                "the brokers, and add replicas to the topic where it exists (kafka-reassign-partitions)"
            )
    if config.get("transaction.state.log.min.isr") == "1":
        warnings.append(f"the brokers have transaction.state.log.min.isr=1: set it to {CLUSTER_INSYNC}")
    return warnings


def check_offsets(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    """Every group's offsets must lie within its topics, and must exist where its results do."""
    return _looked_at_twice(lambda: _offsets(cluster, roles))


def _looked_at_twice(check: Callable[[], CheckResult]) -> CheckResult:
    """Return what a check finds, and finds again: another worker may be about to commit, or to leave."""
    found = check()
    if found.problems:
        time.sleep(RECHECK_S)
        found = check()
    return found


class OffsetFindings(NamedTuple):
    """Problems with the offsets of one group, as sentences."""

    lost: list[str]
    """Unread records were deleted, or a topic was made anew."""
    beyond: list[str]
    """An offset lies behind the end of its log."""
    again: list[str]
    """The group would process records a second time."""
    warnings: list[str]


def _offsets(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    settings = cluster.settings
    with ThreadPoolExecutor(len(roles)) as threads:
        found = list(threads.map(partial(offset_findings, cluster), roles))
    lost, beyond, again, warnings = ([sentence for of_role in found for sentence in of_role[kind]] for kind in range(4))
    refused = _unless_accepted(lost, settings, "accept_lost_records")
    redone = _unless_accepted(again, settings, "restart_from_beginning")
    return CheckResult(refused.problems + beyond + redone.problems, refused.warnings + redone.warnings + warnings)


def offset_findings(cluster: Cluster, role: Role) -> OffsetFindings:
    """Look at the offsets of one group."""
    client, settings = cluster.client, cluster.settings
    group = settings.topic(role.name)
    member = Member(cluster.bootstrap, settings, role.name, role.reads, on_refused=cluster.on_refused)
    topics = describe_topics(client, list(member.topics))
    partitions = [(name, part.id) for name, topic in topics.items() for part in topic.partitions]
    # In this order, so that what is committed in between cannot make an offset look too large.
    with closing(group_consumer(cluster.bootstrap, group, settings=settings)) as consumer:
        committed = committed_by_group(consumer, partitions)
    ends = last_offsets(client, partitions, IsolationLevel.READ_UNCOMMITTED)
    starts = first_offsets(client, partitions)
    missing = [at for at in partitions if at not in committed]
    results = ResultOffsets()
    # Decisions, which are large, are looked at only where something is to be explained.
    if missing or has_order(role.reads):
        numbers = {number for _, number in partitions}
        results = result_offsets(member, numbers)
    # A marker, or a decision, counts only where a second topic bears it out.
    anew = _borne_out(member, results, {at: ends[at] for at in missing})
    unread = [at for at in missing if ends[at] > starts[at] and at not in anew]
    return OffsetFindings(
        lost=_deleted(group, committed, starts) + _made_anew(group, anew),
        beyond=_beyond(group, committed, ends),
        again=_decided_again(member, role.writes, unread, results, whole=not committed),
        warnings=(
            _without_order(group, settings.topic(PROGRESS.name), committed, results) if has_order(role.reads) else []
        ),
    )


def _borne_out(member: Member, results: ResultOffsets, starts: Mapping[Partition, int]) -> dict[Partition, int]:
    """Return how far partitions were read, of those that were read behind ``starts``."""
    return {at: results.furthest[at].end for at in sorted(borne_out(member, results.claims(starts)))}


def check_kernel(cluster: Cluster, roles: Sequence[Role]) -> CheckResult:
    """Refuse a start beside transactions of another kernel that are undecided, or beside workers that write some."""
    writes = any(PROFILED in role.writes for role in roles)
    if not writes and not any(PROFILED in role.reads for role in roles):
        return CheckResult([], [])
    return _looked_at_twice(lambda: _kernels(cluster, writes=writes))


def _kernels(cluster: Cluster, *, writes: bool) -> CheckResult:
    client, settings = cluster.client, cluster.settings
    name = settings.topic(PROFILED.name)
    partitions = [(name, part.id) for part in describe_topics(client, [name])[name].partitions]
    with closing(group_consumer(cluster.bootstrap, settings.topic(SCORE), settings=settings)) as consumer:
        committed = committed_by_group(consumer, partitions)
    ends = last_offsets(client, partitions, IsolationLevel.READ_COMMITTED)
    positions = {number: committed.get((at, number), 0) for at, number in partitions}
    found = start_findings(cluster.bootstrap, settings, positions, {number: end for (_, number), end in ends.items()})
    problems = [
        f"topic {name} partition {block.partition} ends with undecided records of another kernel version (offset "
        f"{block.offset} is of {block.kernel}, this release has {KERNEL_VERSION}): let score agents of the release "
        "that wrote them decide them first (docs/operating.md, another kernel version). If no release of yours wrote "
        "them, they are forged"
        for block in found.undecided
    ]
    if (
        (newest := found.newest) is not None
        and not problems
        and (groups := members_of_others(cluster.bootstrap, settings))
    ):
        problems.append(
            f"workers of another kernel version run: the newest block of topic {name} (partition {newest.partition} "
            f"offset {newest.offset}) is of {newest.kernel}, this release has {KERNEL_VERSION}, and group "
            f"{' and group '.join(groups)} still has members of other releases. Stop their card agents, wait until "
            "their score agents have decided everything, stop those, then start this one (docs/operating.md, another "
            "kernel version)"
        )
    if found.own and not writes:
        # It decides those of this kernel, and leaves partitions alone from where another one begins.
        return CheckResult([], problems)
    return _unless_accepted(problems, settings, "accept_other_kernel")


def _made_anew(group: str, anew: Mapping[Partition, int]) -> list[str]:
    """Topics that end before what was made of them: Kafka forgets a group's offsets with the topic."""
    problems = []
    for name in dict.fromkeys(topic for topic, _ in anew):
        listed = ", ".join(
            f"partition {number} up to offset {end}" for (topic, number), end in anew.items() if topic == name
        )
        problems.append(
            f"group {group} has no offsets for topic {name}, which ends before what the group's results tell that it "
            f"had read ({listed}): the topic was made anew, or lost records. Restore it from a backup; or, if all "
            "topics of the pipeline are to be new, use another FRAUD_PIPELINE_TOPIC_PREFIX"
        )
    return problems


def _without_order(group: str, progress: str, committed: Mapping[Partition, int], results: ResultOffsets) -> list[str]:
    """Warn of committed input whose order of reading is not recorded."""
    warnings = []
    what_follows = (
        "a replay reads such records topic by topic, which may not be the order in which they were worked on. Was the "
        "topic made anew? Restore it from a backup"
    )
    shown = {number for _, number in results.furthest}
    for number in sorted({number for (_, number), offset in committed.items() if offset > 0} - shown):
        warnings.append(
            f"group {group} has read its inputs' partition {number}, and topic {progress} tells nothing of it: "
            f"{what_follows}"
        )
    for (topic, number), offset in committed.items():
        if results.newest.get((topic, number), offset) < offset:
            warnings.append(
                f"group {group} stands at offset {offset} of {topic} partition {number}, and topic {progress} tells of "
                f"it up to offset {results.newest[topic, number]} only: {what_follows}"
            )
    return warnings


def _deleted(group: str, committed: Mapping[Partition, int], starts: Mapping[Partition, int]) -> list[str]:
    return [
        f"group {group} stands at offset {offset} of {at[0]} partition {at[1]}, whose log begins at {starts[at]}: "
        f"{starts[at] - offset} offsets were deleted before they were read. Restore the topic from a backup, and give "
        "it a longer retention.ms"
        for at, offset in committed.items()
        if offset < starts[at]
    ]


def _beyond(group: str, committed: Mapping[Partition, int], ends: Mapping[Partition, int]) -> list[str]:
    """No setting accepts this: nobody can say which of the records that are there were read."""
    return [
        f"group {group} stands at offset {offset} of {at[0]} partition {at[1]}, whose log ends at {ends[at]}: the "
        "topic was made anew, or lost records. Restore it from a backup; or, if all topics of the pipeline are new, "
        "use another FRAUD_PIPELINE_TOPIC_PREFIX or delete the group (kafka-consumer-groups --delete)"
        for at, offset in committed.items()
        if offset > ends[at]
    ]


def _decided_again(
    member: Member, writes: Sequence[Topic], missing: Sequence[Partition], shown: ResultOffsets, *, whole: bool
) -> list[str]:
    """Find inputs that would be decided a second time, because their results exist and they have no offset."""
    # Whoever publishes a model writes to `models`, and a second reading of the examples ends at the same version.
    results = [topic for topic in writes if topic not in (MODELS, CONTROL, PROGRESS)]
    if not missing or not results:
        return []
    settings, group = member.settings, member.settings.topic(member.agent)
    if whole:
        found = [topic for topic in results if any_result(member, topic)]
        what = f"group {group} has no offsets, but {', '.join(settings.topic(topic.name) for topic in found)}"
    elif settings.delivery == "at_least_once":
        # A worker that dies within its first batch leaves results without an offset: repeats are this mode's bargain.
        return []
    else:
        missing = [*_borne_out(member, shown, dict.fromkeys(missing, 0))]
        found = results if missing else []
        listed = ", ".join(f"{topic} partition {number}" for topic, number in missing)
        what = f"group {group} has no offsets for {listed}, but its topics"
    if not found:
        return []
    return [
        f"{what} hold what it made of them: it would do everything again. Set its offsets to where it stood "
        "(kafka-consumer-groups --reset-offsets; docs/operating.md says how to find them), or use another "
        "FRAUD_PIPELINE_TOPIC_PREFIX" + (_FIRST_BATCH if settings.delivery == "at_least_once" else "")
    ]
