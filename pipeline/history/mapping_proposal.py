"""Proposal of a mapping: the members of a producer's own JSON that fit the fields of a transaction, as TOML."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, TypeGuard

import msgspec

from pipeline.history.canonical_columns import truth_of
from schemas.codec import EARLIEST_US, LATEST_US, wall_clock_us
from schemas.errors import InvalidMessage
from schemas.fields import DECLARED_FIELDS, FieldDeclaration, Kind
from schemas.mapping import AMOUNT_TEXTS, PLAIN_AMOUNT
from schemas.messages import Timestamp

MAX_PROPOSED_ATTRIBUTES: Final = 20
_MOST_MEMBERS: Final = 1_000
"""Members that are looked at; producers have tens."""
_MOST_LISTED: Final = 100
_LONGEST_PATH: Final = 256
"""Characters of a path that is proposed."""
_LISTED_WORDS: Final = 10
_LONGEST_TIME: Final = 64
_SHOWN: Final = 70
"""Characters of a path in a comment."""
_FOREIGN_PARENT: Final = 3
"""Places in the order of names that an object of another name around a member costs it."""
_FIELDS: Final = [field for field in DECLARED_FIELDS if field.kind not in (Kind.ATTRIBUTES, Kind.WHOLE)]
_NAMES: Final = {
    name: (name.replace("_", ""), *names.split())
    for name, names in {
        "transaction_id": "txnid txid trxid paymentid orderid id uuid transactionreference reference ref",
        "card_id": "cardtoken cardnumber cardno cardhash pantoken pan card customerid customer accountid account "
        "accountnumber userid user",
        "merchant_id": "merchantnumber merchantno merchant terminalid terminal shopid shop storeid store acceptorid "
        "acceptor cardacceptorid payee merchantname",
        "amount": "amountvalue amt value total cents price sum",
        "event_time": "timestamp datetime createdat created occurredat authorisedat authorizedat time ts at date",
        "currency": "currencycode ccy curr amountcurrency",
        "account_id": "account accountnumber iban customerid customer userid user",
        "transaction_type": "type kind operation",
        "original_transaction_id": "originalid originalreference parenttransactionid refundof",
        "authorisation": "authorization authorisationstatus authorizationstatus authstatus status result response",
        "local_time": "localdatetime localtimestamp merchanttime terminaltime",
        "device_id": "device devicefingerprint fingerprint",
        "ip": "ipaddress ipaddr sourceip clientip",
        "country": "countrycode merchantcountry merchantcountrycode terminalcountry",
        "channel": "entrymode posentrymode source",
        "mcc": "merchantcategorycode merchantcategory categorycode",
        "fraud": "isfraud fraudflag fraudulent fraudlabel chargeback ischargeback chargebackdate chargebackat "
        "frauddate fraudreportedat label target class",
    }.items()
}
"""Names of each field, and of the truth of a file, the best first, in lower case and without separators."""
_GENERIC: Final = re.compile(
    "id|uuid|ref|reference|value|total|sum|type|kind|date|time|at|status|result|response|source"
)
"""Names that mean nothing within an object of another name."""
_ENVELOPES: Final = ("payload", "after", "before", "data", "record", "body", "message", "detail")
_PREFIX: Final = re.compile("^(transaction|txn|trx|tx|payment|purchase|event)(?=.)")
_SUFFIX: Final = re.compile("(?<=.)(in)?(cents?|minor(units?)?|pence|s|seconds|ms|millis|us|micros|ns|nanos|utc)$")
_MINOR: Final = re.compile("cent|minor|pence")
_WORDS: Final = {
    "transaction_type": re.compile("(?i:purchase|refund|reversal|cash|verification)"),
    "authorisation": re.compile("(?i:approved|declined)"),
    "currency": re.compile("[A-Za-z]{3}"),
}
_TRUTHS: Final = {"j": "1", "ja": "1", "oui": "1", "si": "1", "nein": "0", "non": "0"}
"""Words for 1 and 0 that no file is read by without a mapping."""
_CHARGED_BACK: Final = re.compile("fraud|chargeback")
_AMOUNTS: Final = {"": PLAIN_AMOUNT, **AMOUNT_TEXTS}
"""Amounts as text by the setting ``decimal`` that they need."""
_UNIT_US: Final = {"s": Decimal(10**6), "ms": Decimal(1_000), "us": Decimal(1), "ns": Decimal("0.001")}
"""Microseconds in each unit of time."""
_LARGEST: Final = Decimal("1e300")

Path = tuple[str, ...]


def propose_mapping(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the mapping that fits records best, as the TOML that `schemas.mapping.read_mapping` takes.

    A required field that no member fits is left as a comment to complete.

    Args:
        records: The producer's objects, decoded with `Decimal` for numbers with a point.

    >>> print(propose_mapping([{"txnId": "a", "amountCents": 250}]).split("[fields.amount]")[1].split("[")[0].strip())
    path = "amountCents"
    minor = true
    """
    members = _members(records)
    fullest = max(map(len, members.values()), default=0)
    tiers = _tiers(members)
    usable = [path for path in members if all(path) and len(".".join(path)) <= _LONGEST_PATH]
    chosen = dict[str, Path]()
    for field in sorted(_FIELDS, key=lambda field: not field.required):
        scores = {
            path: (tiers[path], 2 * len(members[path]) < fullest, *score)
            for path in usable
            if path not in chosen.values() and (field.required or tiers[path] == 0)
            if (score := _name_score(path, field.name)) is not None and _fits_most(field, members[path])
        }
        if scores:
            chosen[field.name] = min(scores, key=lambda path: scores[path])
    lines = [
        "# A proposal: check every entry, and save it as mapping.toml.",
        'version = "1"  # Give each change a version of its own.',
    ]
    for field in _FIELDS:
        if (path := chosen.get(field.name)) is not None:
            lines += ["", f"[fields.{field.name}]", f"path = {_path_text(path)}"]
            lines += _options(field, path, members[path])
        elif field.required:
            entry = 'constant = "EUR"' if field.name == "currency" else 'path = "..."'
            lines += ["", f"[fields.{field.name}]", f"# {entry}  # No member fits: complete it ({field.meaning})."]
    free = (path for path in usable if path not in chosen.values())
    for _, path in sorted((score, path) for path in free if (score := _name_score(path, "fraud")) is not None):
        if (options := _truth_options(path, members[path], fullest)) is not None:
            chosen["fraud"] = path
            lines += ["", "[fields.fraud]  # Of files only.", f"path = {_path_text(path)}", *options]
            break
    rest = [path for path in members if path not in chosen.values()]
    numbers = [path for path in rest if path in usable and tiers[path] == 0 and members[path]]
    attributes = _attributes([path for path in numbers if all(map(_is_number, members[path]))])
    if attributes:
        lines += ["", "[attributes]", *(f"{name} = {_path_text(path)}" for name, path in attributes.items())]
    if rest := [path for path in rest if path not in attributes.values()]:
        lines += ["", "# Mapped to nothing:", *(f"#   {_shown(path)}" for path in rest[:_MOST_LISTED])]
        lines += ["#   and others"] * (len(rest) > _MOST_LISTED)
    return "\n".join(lines) + "\n"


def _members(records: Iterable[Mapping[str, Any]]) -> dict[Path, list[Any]]:
    """Return the values of each member without nulls, by path."""
    members = dict[Path, list[Any]]()
    for path, value in (leaf for record in records for leaf in _leaves(record, ())):
        if path in members or len(members) < _MOST_MEMBERS:
            members.setdefault(path, []).extend([] if value is None else [value])
    # An object that is null in some records is no member of its own.
    objects = {path[:length] for path in members for length in range(1, len(path))}
    return {path: values for path, values in members.items() if path not in objects or values}


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    else:
        yield path, value


def _tiers(paths: Iterable[Path]) -> dict[Path, int]:
    """Rank a row behind its change (0) before what surrounds it (1), and that before what was (2); else all alike."""
    if not any("after" in path[:-1] for path in paths):
        return dict.fromkeys(paths, 0)
    return {path: 0 if "after" in path[:-1] else 1 + bool({"before", "source"} & set(path)) for path in paths}


def _name_score(path: Path, field: str) -> tuple[int, int] | None:
    """Return how well a path names a field, the lowest best; None for not at all."""
    names = _NAMES.get(field, (field.replace("_", ""),))
    outer = next((at for at, name in enumerate(path) if name not in _ENVELOPES), len(path) - 1)
    found = [
        names.index(form) + _FOREIGN_PARENT * (start - outer)
        for start in range(outer, len(path))
        for form in _forms("".join(path[start:]))
        if form in names and (start == outer or not _GENERIC.fullmatch(form))
    ]
    return (min(found), -outer) if found else None


def _forms(name: str) -> set[str]:
    """Return a name in lower case without separators, with and without words that say nothing of its meaning."""
    whole = "".join(c for c in name.lower() if c.isalnum())
    names = {whole, _PREFIX.sub("", whole)}
    return names | {_SUFFIX.sub("", form) for form in names}


def _fits_most(field: FieldDeclaration, values: Sequence[Any]) -> bool:
    fitting = [value for value in values if _fit(field, value) is not None]
    if field.name == "transaction_id" and 2 * len(set(map(str, fitting))) < len(fitting):
        return False
    return bool(fitting) and (field.name in _WORDS or len(values) <= 2 * len(fitting))


def _fit(field: FieldDeclaration, value: Any) -> str | None:
    """Return how a field takes a value: a unit, a decimal mark, or the contract's word; None if it does not."""
    if field.kind is Kind.TIME:
        return _time_fit(value)
    if field.kind is Kind.AMOUNT and isinstance(value, str):
        return next((mark for mark, pattern in _AMOUNTS.items() if pattern.fullmatch(value)), None)
    if _is_number(value):
        as_text = field.stands_for_text or (isinstance(value, int) and len(str(value)) <= field.most)
        return "" if field.kind is Kind.AMOUNT or (as_text and field.name not in _WORDS) else None
    if not isinstance(value, str) or not field.least <= len(value) <= field.most:
        return None
    if field.kind is Kind.CLOCK:
        try:
            wall_clock_us(value)
        except InvalidMessage:
            return None
    if (words := _WORDS.get(field.name)) is None:
        return value
    return (value.upper() if field.name == "currency" else value.lower()) if words.fullmatch(value) else None


def _time_fit(value: Any) -> str | None:
    """Return the unit of a number of a likely size; ``offset``, or ``zone`` for one to be set, of a text."""
    if isinstance(value, str) and PLAIN_AMOUNT.fullmatch(value):
        value = Decimal(value)
    if _is_number(value):
        sizes = ((unit, Decimal(value) * size) for unit, size in _UNIT_US.items())
        return next((unit for unit, time_us in sizes if EARLIEST_US <= time_us < LATEST_US), None)
    if not isinstance(value, str) or not len("2024-03-01") < len(value) <= _LONGEST_TIME:
        return None
    try:
        datetime.fromisoformat(value)
        msgspec.convert(value, Timestamp)
    except ValueError as error:
        return "zone" if isinstance(error, msgspec.ValidationError) else None
    return "offset"


def _is_number(value: Any) -> TypeGuard[int | Decimal]:
    return isinstance(value, int | Decimal) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _options(field: FieldDeclaration, path: Path, values: Sequence[Any]) -> Iterator[str]:
    """Yield the lines that say how to read the values."""
    fits = {value: fit for value in values if isinstance(value, str) and (fit := _fit(field, value)) is not None}
    if field.kind is Kind.TIME:
        ((unit, _),) = Counter(fit for value in values if (fit := _time_fit(value))).most_common(1)
        if unit == "zone":
            yield 'zone = "UTC"  # For texts without an offset: set the zone of their clock, such as "Europe/Berlin".'
        elif unit != "offset":
            yield f'unit = "{unit}"'
    elif field.kind is Kind.AMOUNT:
        if mark := min(filter(None, fits.values()), default=""):
            yield f'decimal = "{mark}"'
        if all(isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) for value in values):
            minor = _MINOR.search("".join(path).lower())
            yield "minor = true" if minor else "# All are whole numbers: add minor = true if they count cents."
    else:
        if words := [f"{_quoted(text)} = {_quoted(word)}" for text, word in fits.items() if word != text]:
            yield f"values = {{ {', '.join(words)} }}"
        if others := sorted({_shown((str(value),)) for value in values if _fit(field, value) is None}):
            yield f"# No words of the contract: {', '.join(others[:_LISTED_WORDS])}; give theirs in values."


def _truth_options(path: Path, values: Sequence[Any], rows: int) -> list[str] | None:
    """Return the lines that say how to read which of a file's rows are frauds; None if the values do not say it."""
    texts = [str(value).strip() for value in values if value != ""]
    words = {text: _TRUTHS[text.lower()] for text in texts if text.lower() in _TRUTHS}
    found = {truth_of(words.get(text, text)) for text in texts}
    is_known = None not in found
    if texts and len(texts) < rows and False not in found and (is_known or _CHARGED_BACK.search("".join(path).lower())):
        return ["filled = true  # A fraud is a row where anything stands."]
    if not texts or not is_known:
        return None
    pairs = ", ".join(f"{_quoted(text)} = {_quoted(word)}" for text, word in words.items())
    return [f"values = {{ {pairs} }}"] if words else []


def _attributes(paths: Sequence[Path]) -> dict[str, Path]:
    named = dict[str, Path]()
    for path in paths[:MAX_PROPOSED_ATTRIBUTES]:
        name = re.sub("[^A-Za-z0-9_]", "_", path[-1])[:60]
        candidates = (name, *(f"{name}_{number}" for number in range(2, MAX_PROPOSED_ATTRIBUTES + 1)))
        named[next(candidate for candidate in candidates if candidate not in named)] = path
    return named


def _path_text(path: Path) -> str:
    if any("." in name for name in path):
        return f"[{', '.join(map(_quoted, path))}]"
    return _quoted(".".join(path))


def _shown(path: Path) -> str:
    text = ".".join(name[: _SHOWN + 1] for name in path)
    return _quoted(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")[1:-1]


def _quoted(text: str) -> str:
    """Return a TOML string on one line, without control characters."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + '"'
