"""A file of features declares fields and windows, or is refused in a sentence by every program."""

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.features.checked_declaration import load_declaration
from pipeline.features.declaration import DeclarationError
from pipeline.features.feature_set import TRAINED, FeatureSet
from pipeline.settings.features_file import FeaturesError, read_features_file
from tests.helpers.worker import ROOT

FILE = b"""\
# Of our devices.
[fields.device_risk]
type = "number"
meaning = "risk score of the device"

[fields."shop"]
type = "text"
meaning = "name of the shop"

[[features]]
entity = "card"
aggregate = "distinct"
field = "country"
windows = ["7d", "1h"]
where = "channel = 'web' and amount > 50"

[[features]]
entity = "merchant"
aggregate = "share"
windows = ["1d"]
where = "card_merchant_count = 0 and amount > 100"
name = "large_to_strangers"
"""
OWN = (
    "attribute_device_risk", "card_distinct_country_1h", "card_distinct_country_7d",
    "merchant_large_to_strangers_1d",
)  # fmt: skip


def test_fields_and_windows_become_features() -> None:
    features = FeatureSet(read_features_file(FILE, "f"))
    own = (*features.attribute_features, *features.window_features)
    assert tuple(name for name in own if name not in TRAINED) == OWN
    assert {*OWN, *TRAINED} == {*features.default_features}
    assert features.texts == ("shop",)
    words = {feature.name: feature.meaning for feature in features.declared}
    assert words["card_distinct_country_1h"] == (
        "number of different values of country of the card's transactions in the last hour, where channel = 'web' and "
        "amount > 50"
    )


def test_a_declaration_has_one_content() -> None:
    """Comments and spaces are none of it, and the JSON of a record is a file, too."""
    declaration = read_features_file(FILE, "f")
    assert read_features_file(FILE.replace(b"# Of our devices.\n", b"\n\n"), "f") == declaration
    assert read_features_file(declaration.content, "f") == declaration == load_declaration(declaration.content)
    assert read_features_file(FILE.replace(b"50", b"51"), "f").digest != declaration.digest
    head, field, other, rest = re.split(rb"(?=\[fields)|(?=\[\[features)", FILE, maxsplit=3)
    turned = read_features_file(head + other + field + rest, "f")
    assert turned.content == declaration.content
    assert FeatureSet(turned).kernel_version == FeatureSet(load_declaration(declaration.content)).kernel_version


@pytest.mark.parametrize(
    "content", [b"{}", b'{"format":1,"extends":"all"}', b'{"format": 1, "extends": "none"}', b"[]"]
)
def test_a_record_holds_a_declaration_in_full(content: bytes) -> None:
    """Else a worker would have another one than the record's digest says, and replace itself for ever."""
    with pytest.raises(DeclarationError, match=r"publish its file so|no declaration of features"):
        load_declaration(content)
    if content != b"[]":
        declaration = read_features_file(content, "f")
        assert load_declaration(declaration.content) == declaration


def trained(text: str) -> set[str]:
    return {*FeatureSet(read_features_file(text.encode(), "f")).default_features}


def test_a_window_may_be_declared_again() -> None:
    """A file need not know what the set declares that it extends."""
    window = "[[features]]\nentity = 'card'\naggregate = 'min'\nwindows = ['2d']\nwhere = 'hour < 6'\nname = 'night'\n"
    assert trained(2 * window) == trained(window) == TRAINED | {"card_night_2d"}
    assert trained(f"{2 * window}train = false\n") == TRAINED
    wider = trained(window + window.replace("['2d']", "['2d', '3d']"))
    assert wider == TRAINED | {"card_night_2d", "card_night_3d"}
    with pytest.raises(FeaturesError, match="another feature is called card_night_2d"):
        trained(window + window.replace("< 6", "< 7"))


def test_the_last_table_of_a_feature_says_whether_it_is_trained_on() -> None:
    once = '[[features]]\nentity = "card"\naggregate = "count"\nwindows = ["1d"]\n'
    assert trained(once) == TRAINED
    assert trained(f"{once}train = false\n") == TRAINED - {"card_count_1d"}
    assert trained(f'extends = "none"\n{once}train = false\n{once}') == {"card_count_1d"}
    ratio = '[[features]]\nentity = "merchant"\naggregate = "ratio"\nname = "r"\n'
    ratio += 'inputs = ["merchant_known_fraud_30d", "merchant_count_30d"]\n'
    assert trained(ratio) == TRAINED | {"merchant_r"}


def test_built_in_windows_stand_beside_others() -> None:
    features = FeatureSet(
        read_features_file(
            b'extends = "none"\n[[features]]\nentity = "card"\naggregate = "count"\nwindows = ["2d", "1d"]\n', "f"
        )
    )
    assert features.features == ("amount", "card_count_1d", "card_count_2d")
    assert features.window_features == ("card_count_2d",)
    week = b'extends = "none"\n[[features]]\nentity = "card"\naggregate = "seconds_since_last"\nwindows = ["7d"]\n'
    assert FeatureSet(read_features_file(week, "f")).features == ("amount", "card_seconds_since_last_7d")


def test_a_declaration_of_nearly_nothing_is_enough_to_score(tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_text('extends = "none"\n')
    code = "import agents.preparation, pipeline.training.fit, pipeline.monitoring_data.drift; print('loaded')"
    assert printed(file, "-c", code).stdout == "loaded\n"


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        ("type", "typ", "f, line 2: [fields.device_risk]: there is no typ; did you mean type?"),
        ("type", "sort", "f, line 2: [fields.device_risk]: there is no sort; there are type, meaning, personal"),
        ('"number"', '"date"', "f, line 2: [fields.device_risk]: type is number or text"),
        ('meaning = "name of the shop"', "", "f, line 6: [fields.shop]: it needs a meaning"),
        ("name of", "a\\nb", "give it a meaning of at most 100 characters"),
        ("name of", "g" * 200, "give it a meaning of at most 100 characters"),
        ("device_risk", "device-risk", "f, line 2: [fields.device-risk]: a name has at most 64 ASCII letters"),
        ("device_risk", '"gr\u00f6\u00dfe"', "a name has at most 64 ASCII letters"),
        ("device_risk", "x" * 65, "a name has at most 64 ASCII letters"),
        ("device_risk", "country", "a field of the contract or a feature has this name"),
        ('"shop"', "device_risk", "f: it is no TOML: Cannot declare ('fields', 'device_risk') twice (at line 6"),
        ("[[features]]", "[[feature]]", "there is no feature; did you mean features?"),
        ("[fields.device_risk]", "[fields]\ndevice_risk = 1\n[other]", "there is no other"),
        ('"card"', '"cart"', "f, line 10: feature 1: entity cannot be cart; did you mean card?"),
        ('"card"', '"device"', "f, line 10: feature 1: windows per device are not there yet"),
        ("[[features]]", "[entities.device]\n[[features]]", "entities of your own are not there yet"),
        ("distinct", "distnct", "there is no aggregate distnct of a card; did you mean distinct?"),
        ('"country"', '"county"', "there is no field county; did you mean country?"),
        ('"country"', '"amount"', "distinct is of a text, and amount is none"),
        ("7d", "7x", "a window is a number of minutes, hours or days up to 90 days"),
        ("7d", "91d", "a window is a number of minutes, hours or days up to 90 days"),
        ("7d", "60m", "it names a window twice"),
        ("channel =", "chanel =", "f, line 10: feature 1: where: "),
        ("card_merchant_count", "merchant_count_1d", "f, line 17: feature 2: where: "),
        ("share", "count", ""),
        ('"number"', '["number"]', "f, line 2: [fields.device_risk]: type is number or text"),
        ('"number"', '"number"\npersonal = true', "a number cannot be personal"),
        ('["7d", "1h"]', '["7d"]\ninputs = ["a"]', "only a ratio or a function has inputs"),
        ("device_risk", "card_distinct_country_1h", "another feature is called card_distinct_country_1h"),
        (
            'aggregate = "share"\nwindows = ["1d"]\nwhere = "card_merchant_count = 0 and amount > 100"\n'
            'name = "large_to_strangers"',
            'aggregate = "count"\nwindows = ["1d"]\nmeaning = "m"',
            "a built-in feature has a meaning of its own",
        ),
        ('name = "large_to_strangers"', 'name = "count"', "another feature is called merchant_count_1d"),
        ('aggregate = "share"', 'aggregate = "known_fraud"', "known_fraud has neither a field nor a filter"),
        ('windows = ["1d"]', "", "it needs windows"),
        ('windows = ["1d"]', 'windows = "1d"', "f, line 17: feature 2: windows: expected `array`, got `str`"),
        ('where = "card', "where = 1\n#", "where is a text"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(old: str, new: str, saying: str) -> None:
    text = FILE.decode()
    assert old in text
    changed = text.replace(old, new, 1).encode()
    if not saying:
        read_features_file(changed, "f")
        return
    with pytest.raises(FeaturesError) as refused:
        read_features_file(changed, "f")
    assert saying in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        b"\xff", b"fields = 1", b"a = " + b"[" * 50_000, b"#" * 70_000, b"[fields]\na = 1", b"{", b"{}{}",
        b'{"format":2}', b'{"features":[{"entity":"card"}]}', b"features = 1", b"[[features]]", b"extends = 1",
        b"".join(b"[fields.f%d]\n" % number for number in range(101)), b"[fields." + b"x" * 60_000 + b"]",
        b"[[features]]\nentity='card'\naggregate='count'\nwindows=['1d']\nwhere='" + b"(" * 20_000 + b"'",
        b"[[features]]\nentity='card'\naggregate='count'\nwindows=[" + b"'1m'," * 9_000 + b"]",
    ],
)  # fmt: skip
def test_hostile_files_are_refused(content: bytes) -> None:
    with pytest.raises(FeaturesError) as refused:
        read_features_file(content, "f")
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_damaged_files_are_read_or_refused_in_a_sentence() -> None:
    """FEATURES_FILES=10000 damages as many."""
    random = Random(7)
    words = re.split(r"(\W+)", FILE.decode())
    for _ in range(int(os.environ.get("FEATURES_FILES", "300"))):
        damaged = list(words)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(damaged))
            damaged[at] = random.choice([random.choice(words), "", damaged[at] * 2, "\x00", "1e999", "-", "9" * 400])
        try:
            FeatureSet(read_features_file("".join(damaged).encode(), "f"))
        except FeaturesError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 700  # noqa: PT017


def printed(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "FRAUD_PIPELINE_FEATURES_FILE": str(file)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_program_has_them(tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_bytes(FILE)
    listed = printed(file, "-m", "pipeline.cli", "features", "list").stdout.splitlines()
    names = [line.split()[0] for line in listed if not line.startswith(" ")]
    assert {*OWN, *TRAINED} < {*names}
    assert [line.split(":")[0] for line in listed[-4:] if not line.startswith(" ")] == ["card", "merchant"]
    assert any(line.startswith("card_distinct_country_1h * (count, ") for line in listed)
    code = "from pipeline.features.catalogue import DEFAULT_FEATURES; print(*DEFAULT_FEATURES)"
    assert {*printed(file, "-c", code).stdout.split()} == {*TRAINED, *OWN}
    checked = CliRunner().invoke(main, ["features", "check", str(file)])
    assert [line.split()[0] for line in checked.output.splitlines() if not line.startswith(" ")] == [*OWN, "4"]


FUNCTIONS = """
import numba
import numpy as np

@numba.njit
def risk_per_euro(risk, amount):
    return risk / amount

@numba.njit
def total(risk, amount):
    return np.full(len(risk), np.sum(np.where(np.isfinite(amount), amount, 0.0)))

@numba.njit
def count(risk, amount):
    return len(risk)

@numba.njit("float64[::1](float64[::1], float64[::1])")
def written(risk, amount):
    risk[:] = 0.0
    for row in range(len(amount)):
        if amount[row] == 77.0:
            raise ValueError("unlucky")
    return amount + 1.0

def plain(risk, amount):
    return risk
"""
OF_A_FUNCTION = """
[fields.device_risk]
type = "number"
meaning = "risk score of the device"

[[features]]
entity = "transaction"
aggregate = "function"
name = "risk_per_euro"
inputs = ["device_risk", "amount"]
"""


def with_module(tmp_path: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with functions, and a file that names one."""
    file = tmp_path / "features.toml"
    file.write_text(text)
    (tmp_path / "own_functions.py").write_text(FUNCTIONS)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    variables = {"FRAUD_PIPELINE_FEATURES_MODULE": "own_functions", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("name", "saying"),
    [
        ("risk_per_euro", ""),
        ("total", "total gives a row another value beside other rows: let it go by each row alone"),
        ("count", "count returns int64 of shape (), not float64 of a value for each row"),
        ("written", ""),
        ("plain", "own_functions has no function plain that Numba compiles: decorate it with numba.njit"),
        ("absent", "own_functions has no function absent that Numba compiles"),
    ],
)
def test_a_function_of_ones_own_goes_by_each_row_alone(name: str, saying: str, tmp_path: Path) -> None:
    done = with_module(
        tmp_path, OF_A_FUNCTION.replace("risk_per_euro", name),
        "-m", "pipeline.cli", "features", "check", str(tmp_path / "features.toml"),
    )  # fmt: skip
    assert saying in done.stderr
    assert done.returncode == (1 if saying else 0)
    assert (f"function_{name} (number)" in done.stdout) == (not saying)


def test_a_function_gets_copies_and_has_no_value_where_it_fails(tmp_path: Path) -> None:
    code = """
import numpy as np
from pipeline.engine.records.inputs import _called
from pipeline.features.active import active_functions
columns = np.array([[1.0, 77.0, 3.0], [1.0, 77.0, 3.0]]).T.copy().T
print(_called(active_functions()["written"], list(columns)).tolist(), columns[0].tolist())
"""
    (tmp_path / "features.toml").write_text("")
    env = f"import os; os.environ['FRAUD_PIPELINE_FEATURES_FILE'] = {str(tmp_path / 'features.toml')!r}"
    done = with_module(tmp_path, OF_A_FUNCTION.replace("risk_per_euro", "written"), "-c", f"{env}\n{code}")
    assert done.stdout == "[2.0, nan, 4.0] [1.0, 77.0, 3.0]\n", done.stderr


def test_a_function_is_that_of_its_declaration(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from pipeline.settings.features_file import read_features_file
path = Path({str(tmp_path)!r})
content = read_features_file((path / "features.toml").read_bytes(), "f").content
(path / "published.json").write_bytes(content)
(path / "changed.json").write_bytes(content.replace(b'"source":"', b'"source":"0')[:-1] + b"}}")
"""
    assert with_module(tmp_path, OF_A_FUNCTION, "-c", code).returncode == 0
    code = f"""
import os, sys
os.environ["FRAUD_PIPELINE_FEATURES_FILE"] = {str(tmp_path)!r} + "/" + sys.argv[1]
import numpy as np
from pipeline.engine.records.accept import accept_transactions
from pipeline.engine.records.inputs import fill_columns
from pipeline.features.catalogue import FEATURES
from tests.contract.records import ARRIVED_US, RATES, TOLERANCE_US, TRANSACTION
import json
row = TRANSACTION | {{"attributes": {{"device_risk": 0.5}}}}
rows, rejects = accept_transactions([json.dumps(row).encode()], np.array([ARRIVED_US]), RATES, TOLERANCE_US)
features = np.zeros((1, len(FEATURES)))
fill_columns(rows, features)
print(features[0, FEATURES.index("function_risk_per_euro")] == 0.5 / (rows.amount_base_minor[0] / 100))
"""
    same = with_module(tmp_path, OF_A_FUNCTION, "-c", code, "published.json")
    assert same.stdout.split() == ["True"], same.stderr
    changed = with_module(tmp_path, OF_A_FUNCTION, "-c", code, "changed.json")
    assert "has another source" in changed.stderr
    assert len(changed.stderr.splitlines()) == 1


def test_no_worker_loads_the_parser_of_filters(tmp_path: Path) -> None:
    """A worker has the trees of a record."""
    file = tmp_path / "features.json"
    file.write_bytes(read_features_file(FILE, "f").content)
    code = "import sys, agents.app, agents.preparation; print('sqlglot' in sys.modules)"
    assert printed(file, "-c", code).stdout.split() == ["False"]


@pytest.mark.parametrize("program", [("-m", "pipeline.cli", "--help"), ("-m", "faust", "-A", "agents.app", "worker")])
def test_no_program_starts_with_a_wrong_file(program: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "features.toml"
    file.write_bytes(FILE.replace(b"number", b"date"))
    for named in (file, tmp_path / "absent.toml"):
        done = printed(named, *program)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
