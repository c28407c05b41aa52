"""Proposal of a mapping: the members of a producer's own JSON that fit the fields of a transaction, as TOML."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from schemas.codec import EARLIEST_US, LATEST_US, wall_clock_us
from schemas.errors import InvalidMessage
from schemas.fields import DECLARED_FIELDS, FieldDeclaration, Kind
from schemas.messages import Timestamp

MAX_PROPOSED_ATTRIBUTES: Final = 20
_MOST_MEMBERS: Final = 1_000
"""Members that are looked at; producers have tens."""
_MOST_LISTED: Final = 100
_LONGEST_PATH: Final = 256
"""Characters of a path that is proposed."""
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
        "transaction_type": "type operation",
        "original_transaction_id": "originalid originalreference parenttransactionid refundof",
        "authorisation": "authorization authorisationstatus authorizationstatus authstatus status result response",
        "local_time": "localdatetime localtimestamp merchanttime terminaltime",
        "device_id": "device devicefingerprint fingerprint",
        "ip": "ipaddress ipaddr sourceip clientip",
        "country": "countrycode merchantcountry merchantcountrycode terminalcountry",
        "channel": "entrymode posentrymode source",
        "mcc": "merchantcategorycode merchantcategory categorycode",
    }.items()
}
"""Names of each field, the best first, in lower case and without separators."""
_GENERIC: Final = frozenset("id uuid reference ref value total sum type date time at status result response source".split())
"""Names that mean nothing within an object of another name."""
_ENVELOPES: Final = frozenset("payload after before data record body message detail".split())
_PREFIX: Final = re.compile("^(transaction|txn|trx|tx|payment|purchase|event)(?=.)")
_SUFFIX: Final = re.compile("(?<=.)(in)?(cents?|minor(units?)?|pence|s|seconds|ms|millis|us|micros|ns|nanos|utc)$")
_MINOR: Final = re.compile("(?<!per)cent|minor|pence")
_WORDS: Final = {
    "transaction_type": ("purchase", "refund", "reversal", "cash", "verification"),
    "authorisation": ("approved", "declined"),
}
_CURRENCY: Final = re.compile("[A-Za-z]{3}")
_PLAIN: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")
_BLANKS: Final = " '\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{RIGHT SINGLE QUOTATION MARK}"
_DECIMALS: Final = {
    mark: re.compile(rf"-?([0-9]{{1,40}}|[0-9]{{1,3}}([{grouping}{_BLANKS}][0-9]{{3}}){{1,10}})({mark}[0-9]{{1,20}})?")
    for mark, grouping in ((r"\.", ","), (",", "."))
}
_UNITS: Final = {
    unit: (EARLIEST_US * numerator // divisor, LATEST_US * numerator // divisor)
    for unit, numerator, divisor in (("s", 1, 10**6), ("ms", 1, 10**3), ("us", 1, 1), ("ns", 10**3, 1))
}
"""First and last number of each unit of time that can be meant."""
_LARGEST: Final = Decimal("1e300")

Path = tuple[str, ...]
Members = dict[Path, list[Any]]
"""Values by path, without nulls."""


def propose_mapping(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the mapping that fits records best, as the TOML that `schemas.mapping.read_mapping` takes.

    A required field that no member fits is left as a comment to complete.

    Args:
        records: The producer's objects, decoded with `Decimal` for numbers with a point.

    >>> print(propose_mapping([{"txnId": "a", "amountCents": 250}]).split("[fields.amount]")[1].split("[")[0].strip())
    path = "amountCents"
    minor = true
    """
    members, count = _members(records)
    has_after = any("after" in path[:-1] for path in members)
    ranked = {path: _rank_place(path, has_after) for path in members}
    usable = [path for path in members if all(path) and sum(map(len, path)) + len(path) <= _LONGEST_PATH]
    chosen = dict[str, Path]()
    for field in sorted(_FIELDS, key=lambda field: not field.required):
        scores = {
            path: (ranked[path], 2 * len(members[path]) < count, *score)
            for path in usable
            if path not in chosen.values() and (field.required or ranked[path] == 0)
            if (score := _name_score(path, field.name)) is not None and _fits_most(field, members[path])
        }
        if scores:
            chosen[field.name] = min(scores, key=lambda path: scores[path])
    lines = [
        f"# Proposed from {count:,} records: check every entry, and save it as mapping.toml.",
        'version = "1"  # Give each change a version of its own.',
    ]
    for field in _FIELDS:
        if field.name in chosen:
            path = chosen[field.name]
            lines += ["", f"[fields.{field.name}]", f"path = {_path_text(path)}"]
            lines += _options(field, path, members[path])
        elif field.required:
            lines += ["", f"[fields.{field.name}]", _to_complete(field)]
    rest = [path for path in members if path not in chosen.values()]
    numbers = [path for path in rest if path in usable and ranked[path] == 0 and _are_numbers(members[path])]
    if attributes := _attribute_names(numbers[:MAX_PROPOSED_ATTRIBUTES]):
        lines += ["", "[attributes]", *(f"{name} = {_path_text(path)}" for name, path in attributes.items())]
    if rest := [path for path in rest if path not in attributes.values()]:
        lines += ["", "# Mapped to nothing:", *(f"#   {_shown(path)}" for path in rest[:_MOST_LISTED])]
    if len(rest) > _MOST_LISTED:
        lines.append("#   and others")
    return "\n".join(lines) + "\n"


def _members(records: Iterable[Mapping[str, Any]]) -> tuple[Members, int]:
    members, count = Members(), 0
    for record in records:
        count += 1
        for path, value in _leaves(record, ()):
            if path in members or len(members) < _MOST_MEMBERS:
                members.setdefault(path, []).extend([] if value is None else [value])
    # An object that is null in some records is no member of its own.
    objects = {path[:length] for path in members for length in range(1, len(path))}
    return {path: values for path, values in members.items() if path not in objects or values}, count


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    else:
        yield path, value


def _rank_place(path: Path, has_after: bool) -> int:
    """Rank the state of a row behind its change before what surrounds it, and that before what was."""
    if not has_after or "after" in path[:-1]:
        return 0
    return 2 if {"before", "source"} & set(path) else 1


def _name_score(path: Path, field: str) -> tuple[int, int] | None:
    """Return how well a path names a field, the lowest best; None for not at all."""
    outer = next((at for at, name in enumerate(path) if name not in _ENVELOPES), len(path) - 1)
    found = [
        _NAMES[field].index(form) + _FOREIGN_PARENT * (start - outer)
        for start in range(outer, len(path))
        for form in _forms("".join(path[start:]))
        if form in _NAMES.get(field, ()) and (start == outer or form not in _GENERIC)
    ]
    return (min(found), -outer) if found else None


def _forms(name: str) -> set[str]:
    """Return a name in lower case without separators, with and without words that say nothing of its meaning."""
    whole = "".join(c for c in name.lower() if c.isalnum())
    names = {whole, _PREFIX.sub("", whole)}
    return names | {_SUFFIX.sub("", form) for form in names}


def _fits_most(field: FieldDeclaration, values: Sequence[Any]) -> bool:
    fitting = [value for value in values if _fits(field, value)]
    if field.name == "transaction_id" and 2 * len({str(value) for value in fitting}) < len(fitting):
        return False
    return 0 < len(values) <= 2 * len(fitting)


def _fits(field: FieldDeclaration, value: Any) -> bool:
    if field.kind is Kind.TIME:
        return _unit(value) is not None or _moment(value) is not None
    if field.kind is Kind.AMOUNT:
        return _is_number(value) or (
            isinstance(value, str) and any(pattern.fullmatch(value) for pattern in _DECIMALS.values())
        )
    if isinstance(value, str):
        return _target(field, value) is not None and field.least <= len(value) <= field.most
    if field.name in ("currency", *_WORDS) or field.kind is not Kind.TEXT:
        return False
    return _is_number(value) and (field.stands_for_text or (isinstance(value, int) and len(str(value)) <= field.most))


def _target(field: FieldDeclaration, text: str) -> str | None:
    """Return the contract's word for a text; None where it has none."""
    if field.kind is Kind.CLOCK:
        try:
            wall_clock_us(text)
        except InvalidMessage:
            return None
    if field.name == "currency":
        return text.upper() if _CURRENCY.fullmatch(text) else None
    if field.name in _WORDS:
        return text.lower() if text.lower() in _WORDS[field.name] else None
    return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool) and abs(value) < _LARGEST


def _are_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(map(_is_number, values))


def _unit(value: Any) -> str | None:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        value = Decimal(value)
    if not _is_number(value):
        return None
    return next((unit for unit, (first, last) in _UNITS.items() if first <= value < last), None)


def _moment(value: Any) -> datetime | None:
    """Return the time that a text states with a time of day."""
    if not isinstance(value, str) or not len("2024-03-01") < len(value) <= _LONGEST_TIME:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _options(field: FieldDeclaration, path: Path, values: Sequence[Any]) -> Iterator[str]:
    """Yield the lines that say how to read the values."""
    texts = [value for value in values if isinstance(value, str)]
    if field.kind is Kind.TIME:
        yield from _time_options(values)
    elif field.kind is Kind.AMOUNT:
        fitting = {mark: sum(map(bool, map(_DECIMALS[mark].fullmatch, texts))) for mark in _DECIMALS}
        if sum(map(bool, map(_PLAIN.fullmatch, texts))) < max(fitting.values()):
            yield f'decimal = "{max(fitting, key=lambda mark: fitting[mark])[-1]}"'
        if all(isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) for value in values):
            minor = _MINOR.search("".join(path).lower())
            yield "minor = true" if minor else "# All are whole numbers: add minor = true if they count cents."
    elif field.kind is Kind.TEXT:
        words = {text: word for text in texts if (word := _target(field, text)) is not None and word != text}
        if words:
            yield f"values = {{ {', '.join(f'{_quoted(text)} = {_quoted(word)}' for text, word in words.items())} }}"


def _time_options(values: Sequence[Any]) -> Iterator[str]:
    (unit, _), *_ = Counter(map(_unit, values)).most_common(1)
    moments = {value: moment for value in values if isinstance(value, str) and (moment := _moment(value)) is not None}
    if unit is not None:
        yield f'unit = "{unit}"'
    elif any(moment.tzinfo is None for moment in moments.values()):
        yield 'zone = "UTC"  # The texts have no offset: set the time zone of their clock, such as "Europe/Berlin".'
    elif not all(map(_is_rfc_3339, moments)):
        yield 'zone = "UTC"'


def _is_rfc_3339(text: str) -> bool:
    try:
        msgspec.convert(text, Timestamp)
    except msgspec.ValidationError:
        return False
    return True


def _to_complete(field: FieldDeclaration) -> str:
    if field.name == "currency":
        return '# constant = "EUR"  # No member fits: uncomment it with your currency, or write its path.'
    return f'# path = "..."  # No member fits: uncomment it with the path of your member ({field.meaning}).'


def _attribute_names(paths: Sequence[Path]) -> dict[str, Path]:
    names = dict[str, Path]()
    for path in paths:
        name = re.sub("[^A-Za-z0-9_]", "_", path[-1])[:60]
        number = next(number for number in range(1, len(paths) + 1) if _numbered(name, number) not in names)
        names[_numbered(name, number)] = path
    return names


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _path_text(path: Path) -> str:
    if any("." in name for name in path):
        return f"[{', '.join(map(_quoted, path))}]"
    return _quoted(".".join(path))


def _shown(path: Path) -> str:
    text = ".".join(name[:_SHOWN] for name in path)
    return _quoted(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")[1:-1]


def _quoted(text: str) -> str:
    """Return a TOML string on one line, without control characters."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + '"'
