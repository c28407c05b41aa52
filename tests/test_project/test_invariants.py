"""The page of the invariants names a test of each."""

import re

from tests.helpers.worker import ROOT

PAGE = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")


def test_every_invariant_names_a_test_that_exists() -> None:
    statements, _, table = PAGE.partition("## Where each is proven")
    rows = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", table, re.MULTILINE)
    listed = sorted(int(number) for numbers, _ in rows for number in numbers.split(","))
    assert listed == sorted(map(int, re.findall(r"^- \*\*(\d+)\.\*\*", statements, re.MULTILINE)))
    for _, tests in rows:
        named = re.findall(r"(?:`(test_\w+)` in )?`(tests/\S+\.py)`", tests)
        assert named
        for name, path in named:
            assert f"def {name or 'test_'}" in (ROOT / path).read_text(encoding="utf-8"), (name, path)
