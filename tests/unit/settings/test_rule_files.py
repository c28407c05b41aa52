"""Files of rules are read, or refused in a sentence that points at the character."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.decision.rules import FIELDS
from pipeline.expressions.trees import Condition, check_tree, lines_of
from pipeline.settings import rule_files
from pipeline.settings.rule_files import RuleFileError, missing_lines, read_directory, read_rule

HEAD = "-- code: abroad\n-- owner: dana\n-- reason: Far away: it is rare.\n"


def written(directory: Path, text: str, name: str = "a.sql") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_a_draft_with_its_text_and_tree(tmp_path: Path) -> None:
    text = "-- action: tag\n-- severity: high\n\n" + HEAD + "\n  amount > 5\n  and country not in ('DE', 'AT')\n\n"
    rule = read_rule(written(tmp_path, text)).rule

    assert (rule.code, rule.owner, rule.reason) == ("abroad", "dana", "Far away: it is rare.")
    assert (rule.severity, rule.action, rule.state) == ("high", "tag", "draft")
    assert rule.expression == "amount > 5 and country not in ('DE', 'AT')"
    assert lines_of(check_tree(rule.tree, FIELDS)) == ["amount > 5", "and country not in ('DE', 'AT')"]


def test_lines_end_as_in_files_of_any_system_and_nowhere_else(tmp_path: Path) -> None:
    text = HEAD.replace("dana", "dana\u2003b").replace("\n", "\r\n") + "amount >\u00a05\u2028and hour > 1\r\n"
    path = tmp_path / "a.sql"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    rule = read_rule(path).rule

    assert (rule.owner, rule.reason, rule.expression) == (
        "dana\u2003b", "Far away: it is rare.", "amount > 5 and hour > 1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (HEAD + "amount > 5 and\n\n  cuntry = 'DE'", "line 6, character 3: there is no field cuntry; did you mean"),
        (HEAD + "amount > '5'", "line 4, character 10: > mixes amount, a number, and '5', a text"),
        (HEAD + "amount > 5 or", "line 4, character 12: the condition ends behind or"),
        (HEAD + "é = 5", "line 4, character 1: é = 5 is not understood"),
        (HEAD + "amount > 5 -- large", "line 4, character 12: -- is not understood; leave comments out"),
        (HEAD, "line 4, character 1: the condition is empty"),
        (HEAD + "amount > " + "(" * 21 + "1" + ")" * 21, "character 30: the condition is nested deeper than 20"),
        ("amount > 5", "a.sql: the header lacks code, owner, reason"),
        ("-- codes: x\namount > 5", "a.sql, line 1: there is no codes; did you mean code?"),
        ("-- hello\namount > 5", "a.sql, line 1: write -- and one of code, owner"),
        (HEAD + "-- code: again\namount > 5", "a.sql, line 4: give code once"),
        (HEAD.replace("dana", "da\u2028na") + "amount > 5", "a.sql, line 2: owner has a control character"),
        (HEAD.replace("dana", "da\x1bna") + "amount > 5", "a.sql, line 2: owner has a control character"),
        (HEAD.replace("\n", "\r") + "amount > 5", "a.sql, line 1: code has a control character; write it on one"),
        (HEAD.replace("abroad", "abroad.sql") + "amount > 5", "a.sql: the code 'abroad.sql' would be taken for a file"),
        (HEAD + "amount >\u200b 5", "line 4, character 9: \\u200b 5 is not understood"),
        (HEAD + "-- severity: hi\namount > 5", "a.sql, line 4: severity cannot be hi; did you mean high?"),
        (HEAD + "amount > 5" + " " * 70_000, "a.sql has more than 65,536 bytes"),
    ],
)
def test_errors_point_at_the_character(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(RuleFileError) as caught:
        read_rule(written(tmp_path, text))

    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_codes_are_unique_in_a_directory(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match=r"has no file \*\.sql"):
        read_directory(tmp_path)
    with pytest.raises(RuleFileError, match="gone cannot be read: No such file or directory"):
        read_directory(tmp_path / "gone")
    written(tmp_path, HEAD + "amount > 5")
    written(tmp_path, "left by an editor", "._a.sql")
    written(tmp_path, HEAD + "amount > 6", "b.SQL")
    with pytest.raises(RuleFileError, match=r"b\.SQL: .*a\.sql has the code abroad too"):
        read_directory(tmp_path)


def test_the_lines_that_are_missing_declare_what_a_rule_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.features.feature_set import FeatureSet
    from pipeline.settings.features_file import read_features_file

    names = ("card_sum_1h", "hour", "merchant_fraud_run_seconds_14d", "weekday")
    monkeypatch.setattr(rule_files, "FIELDS", {name: kind for name, kind in FIELDS.items() if name not in names})
    monkeypatch.setattr(rule_files, "_UNDECLARED", {name: FIELDS[name] for name in names})
    found = read_rule(written(tmp_path, HEAD + " + ".join(names) + " > 5"))
    lines = 'extends = "none"\n' + "\n".join(missing_lines(found.missing))

    assert found.missing == names
    assert {*names} <= {*FeatureSet(read_features_file(lines.encode(), "features.toml")).features}


def test_windows_that_are_missing_are_declared_by_their_names(tmp_path: Path) -> None:
    from pipeline.features.feature_set import FeatureSet
    from pipeline.settings.features_file import read_features_file

    names = ("card_count_3h", "card_distinct_country_90m", "card_seconds_since_last_5d", "merchant_sum_hour_17d")
    found = read_rule(written(tmp_path, HEAD + " + ".join(names) + " > 5"))
    lines = 'extends = "none"\n' + "\n".join(missing_lines(found.missing))

    assert found.missing == names
    assert {*names} <= {*FeatureSet(read_features_file(lines.encode(), "features.toml")).features}
    for name in ("card_share_3h", "card_distinct_3h", "card_count_99d", "card_count_cuntry_3h", "card_counts_3h"):
        with pytest.raises(RuleFileError, match=f"there is no field {name}; did you mean"):
            read_rule(written(tmp_path, HEAD + f"{name} > 5"))


def test_the_examples_can_be_used() -> None:
    from tests.helpers.worker import ROOT

    files = [path for path in sorted((ROOT / "examples/rules").glob("*.sql")) if "plane" not in path.name]
    assert len(files) == 11
    for path in files:
        assert isinstance(check_tree(read_rule(path).rule.tree, FIELDS), Condition)
        assert read_rule(path).rule.code == path.stem


@pytest.mark.parametrize(
    ("condition", "doubt"),
    [
        ("amount > 5 and not (50 < score)", "50 < score: score lies between 0 and 1"),
        ("river in (0.5, 2)", "river in (0.5, 2): river lies between 0 and 1"),
        ("amount between 22 and 6", "amount between 22 and 6 is never true: write the smaller value first"),
        ("country between 'DE' and 'AT'", "country between 'DE' and 'AT' is never true: write the smaller value first"),
        ("5 between hour * 2 and 3 and amount between hour and 5 and amount between 6 and 6", None),
        ("score between 0 and 1", None),
        ("score * 100 > 50 and case when amount > 5 then score else 7 end > 0.5", None),
    ],
)
def test_a_part_that_no_value_changes_is_doubted_and_can_be_used(
    tmp_path: Path, condition: str, doubt: str | None
) -> None:
    written(tmp_path, HEAD + condition)
    done = CliRunner().invoke(main, ["rules", "check", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [*([f"Look at abroad: {doubt}."] if doubt else []), "Can be used: abroad."]
