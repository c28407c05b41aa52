import re
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from random import Random
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.compiled_contributions import path_contributions
from pipeline.scoring.compiled_trees import forest_sums
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.tree_layout import Forest, lay_out_trees
from pipeline.scoring.trees import MOST_LEAVES, MOST_TREES, read_trees
from tests.helpers.models import ask_lightgbm, edited_text, grown, hard_rows, matrix, small_model


def forest_of(text: str) -> Forest | None:
    return lay_out_trees(read_trees(text, FEATURES))[0]


@pytest.mark.parametrize(
    "booster",
    [
        grown(),
        grown(leaves=64, trees=5),
        grown(leaves=2),
        grown(gaps=False),
        grown(use_missing=False),
        grown(trees=1, leaves=3),
        grown(min_data_in_leaf=10_000, trees=3),
    ],
    ids=["usual", "64 leaves", "stumps", "no gaps in training", "missing is zero", "one tree", "no splits"],
)
def test_the_compiled_sum_is_lightgbm_s_to_the_last_bit(booster: lightgbm.Booster) -> None:
    forest = forest_of(booster.model_to_string())
    assert forest is not None
    rows = matrix(500) if booster.trees_to_dataframe()["threshold"].isna().all() else hard_rows(booster)
    np.testing.assert_array_equal(forest_sums(forest, rows), booster.predict(rows, raw_score=True))


def test_a_split_between_numbers_and_missing_values() -> None:
    """Where that something is missing tells most, the threshold is infinite: all numbers left, the rest right."""
    features = matrix(4_000, seed=5)
    features[::3, 0] = np.nan
    # Were all numbers positive, a threshold at 0 would part them too.
    features[1::3, 0] *= -1.0
    fraud = np.isnan(features[:, 0]) | (features[:, 1] > np.nanquantile(features[:, 1], 0.9))
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 7, "verbosity": -1, "num_threads": 1},
        lightgbm.Dataset(features, fraud.astype(float), feature_name=list(FEATURES), params={"verbosity": -1}),
        num_boost_round=3,
    )
    assert re.search(r"^threshold=.*\binf\b", booster.model_to_string(), re.MULTILINE)
    forest = forest_of(booster.model_to_string())
    assert forest is not None
    rows = np.vstack([features, hard_rows(booster)])
    np.testing.assert_array_equal(forest_sums(forest, rows), booster.predict(rows, raw_score=True))


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 39, 40, 63, 64, 65, 103, 104, 129])
def test_any_number_of_rows(rows: int) -> None:
    model = small_model()
    booster = lightgbm.Booster(model_str=msgspec.json.decode(model.to_payload())["text"])
    features = matrix(max(rows, 1), seed=rows)[:rows]
    expected = booster.predict(features, raw_score=True) if rows else np.empty(0)
    np.testing.assert_array_equal(model.margin(features), expected)
    np.testing.assert_array_equal(model.margin(np.asfortranarray(features)), expected)


def test_the_compiled_sum_is_what_scores() -> None:
    assert small_model().compiled


@pytest.mark.parametrize("parameters", [{"leaves": 100}, {"zero_as_missing": True}], ids=["large", "zero is missing"])
def test_other_sound_trees_are_left_to_lightgbm(parameters: dict[str, Any]) -> None:
    booster = grown(**parameters)
    model = LightGBMModel(booster.model_to_string())
    assert not model.compiled
    features = matrix(300)
    np.testing.assert_array_equal(model.margin(features), booster.predict(features, raw_score=True))


@pytest.mark.parametrize(
    "parameters",
    [
        {"monotone_constraints": [1, *[0] * (len(FEATURES) - 1)]},
        {"boosting": "dart"},
        {"objective": "cross_entropy"},
        {"objective": "binary", "sigmoid": 0.7},
        {"leaves": 2_000, "trees": 2, "min_data_in_leaf": 1},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_what_lightgbm_writes_is_read(parameters: dict[str, Any]) -> None:
    booster = grown(**parameters)
    model, rows = LightGBMModel(booster.model_to_string()), hard_rows(booster, 200)
    np.testing.assert_array_equal(model.margin(rows), booster.predict(rows, raw_score=True))


TEXT = grown(trees=3, leaves=6).model_to_string()


def edited(pattern: str, replacement: str) -> str:
    return edited_text(TEXT, pattern, replacement)


@pytest.mark.parametrize(
    ("pattern", "replacement", "complaint"),
    [
        ("^version=v4", "version=v3", "version"),
        ("^num_class=1", "num_class=3", "num_class"),
        ("^label_index=0", "label_index=0\naverage_output", "random forest"),
        ("^feature_names=amount", "feature_names=sum", "other features"),
        (f"^max_feature_idx={len(FEATURES) - 1}", "max_feature_idx=9999999", "number of features"),
        ("^num_leaves=6", "num_leaves=9", "as many leaves"),
        ("^num_cat=0", "num_cat=1", "categories"),
        ("^is_linear=0", "is_linear=1", "linear leaves"),
        ("^end of trees", "the end", "is not where|end of the trees"),
        ("^Tree=1", "Tree=7", "tree 1 is not where"),
        (r"^left_child=\S+ (\S+)", r"left_child=0 \1", "is no tree"),
        (r"^left_child=\S+ (\S+)", r"left_child=77 \1", "names a node"),
        (r"^right_child=\S+ (\S+)", r"right_child=-77 \1", "names a node"),
        (r"^split_feature=\S+", f"split_feature={len(FEATURES)}", "asks for a feature"),
        (r"^threshold=\S+", "threshold=nan", "no number"),
        (r"^threshold=\S+", "threshold=-inf", "no number"),
        (r"^threshold=\S+ ", "threshold=", "one inner node less"),
        (r"^leaf_value=\S+", "leaf_value=x", "is no number as"),
        (r"^leaf_value=\S+", "leaf_value=nan", "no number"),
        (r"^leaf_count=\S+ ", "leaf_count=", "leaf_count"),
        (r"^internal_count=\S+ ", "internal_count=", "internal_count"),
        (r"^leaf_count=\S+", "leaf_count=2147483648", "more rows"),
        (r"^internal_count=\S+", "internal_count=1e3", "is no number as"),
        (r"^internal_value=\S+ ", "internal_value=", "internal_value"),
        (r"^decision_type=\S+", "decision_type=1", "kind of decision"),
        ("^version=v4", "version=v\u00e9", "characters"),
        ("^num_cat=0", "num_cat=1000000\x0cnum_cat=0", "characters"),
        ("^num_cat=0", "num_cat=1000000\nnum_cat=0", "has num_cat twice"),
        ("^num_cat=0", "num_cat=0\r", "characters"),
        (r"^leaf_value=(\S+) ", r"leaf_value=\1\t", "characters"),
        (r"^leaf_value=(\S+) ", r"leaf_value=\1  ", "is no number as"),
        (r"^leaf_value=\S+", "leaf_value=1_0", "is no number as"),
        (r"^leaf_value=\S+", "leaf_value=0x10", "is no number as"),
        (r"^leaf_value=\S+", "leaf_value=Infinity", "is no number as"),
        (r"^leaf_value=\S+", "leaf_value=1e300", "more than any margin"),
        (r"^leaf_count=\S+", "leaf_count=+5", "is no number as"),
        (r"^leaf_count=\S+", "leaf_count=" + "9" * 5_000, "is no number as"),
        (r"^shrinkage=\S+", "shrinkage=x", "is no number as"),
        (r"^num_cat=0", "num_cat=0\nx=1", "does not know"),
        (r"^num_cat=0", "num_cat=0\nx", "does not know"),
        (r"^num_cat=0", "num_cat=0\n\n", "ended by an empty line"),
        (r"^num_class=1", "num_class=1\n=num_class=2", "does not know"),
        (r"^num_class=1", "num_class=1\nnum_class=2", "has num_class twice"),
        (r"^label_index=0", "label_index=x", "is no number as"),
        (r"^label_index=0", "label_index=0\nmonotone_constraints=1 0", "monotone"),
        (r"^objective=.*", "objective=multiclass num_class:9", "objective"),
        (r"^feature_infos=\S+ ", "feature_infos=", "feature_infos"),
        ("^tree$", "forest", "first line"),
    ],
)
def test_a_text_that_was_changed_is_refused(pattern: str, replacement: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        read_trees(edited(pattern, replacement), FEATURES)


def test_editing_alone_breaks_nothing() -> None:
    assert forest_of(edited("^version=v4", "version=v4")) is not None


@given(st.integers(0, TEXT.index("end of trees") + 11))
def test_a_text_that_was_cut_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_trees(TEXT[:length], FEATURES)


@given(st.integers(0, TEXT.index("end of trees") - 1), st.sampled_from("0123456789-. =\nx"))
def test_a_text_with_another_character_is_refused_or_still_sound(place: int, character: str) -> None:
    try:
        trees = read_trees(TEXT[:place] + character + TEXT[place + 1 :], FEATURES)
    except ModelError:
        return
    forest, paths = lay_out_trees(trees)
    if forest is not None:
        assert np.isfinite(forest_sums(forest, matrix(20))).all()
    if paths is not None:
        assert np.isfinite(path_contributions(paths, matrix(20))).all()


def chain(depth: int) -> str:
    """A tree in which every test but the last leads to another on its right."""
    nodes, leaves = range(depth), range(depth + 1)
    lists = {
        "num_leaves": [depth + 1],
        "num_cat": [0],
        "split_feature": [0 for _ in nodes],
        "threshold": list(nodes),
        "decision_type": [2 for _ in nodes],
        "left_child": [~node for node in nodes],
        "right_child": [*(node + 1 for node in nodes[:-1]), ~depth],
        "leaf_value": [leaf / 8 for leaf in leaves],
        "leaf_count": [1 for _ in leaves],
        "internal_count": [depth + 1 - node for node in nodes],
    }
    fields = "".join(f"{name}={' '.join(map(str, values))}\n" for name, values in lists.items())
    return edited_text(TEXT, r"^Tree=0\n(?s:.*?)\n\n", f"Tree=0\n{fields}\n")


def test_the_deepest_tree_that_passes_does_not_overflow_lightgbm_s_stack() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        child.submit(ask_lightgbm, chain(MOST_LEAVES - 1)).result()


def test_a_version_with_more_trees_or_leaves_than_are_scored_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has 257 leaves, and at most 256 are scored; train one with fewer --leaves"):
        read_trees(chain(MOST_LEAVES), FEATURES)
    start, end = TEXT.index("\nTree=0\n") + 1, TEXT.index("Tree=1\n")
    tree = TEXT[start:end]
    for trees in (MOST_TREES, 16_607):
        blocks = [tree.replace("Tree=0", f"Tree={number}", 1) for number in range(trees)]
        sizes = " ".join(str(len(block)) for block in blocks)
        head = re.sub("(?m)^tree_sizes=.*$", f"tree_sizes={sizes}", TEXT[:start])
        text = head + "".join(blocks) + TEXT[TEXT.index("end of trees") :]
        if trees == MOST_TREES:
            assert len(read_trees(text, FEATURES)) == trees
            continue
        with pytest.raises(ModelError, match="it has 16,607 trees, and at most 2,000 are scored"):
            read_trees(text, FEATURES)


INTERESTING = (
    "0", "-0", "1", "-1", "9", "15", "1e5", "1e999", "-1e-999", "inf", "-inf", "nan", "1_0", "+1", " 1", "0x1", "1e",
    ".5", "5.", "2147483647", "2147483648", "1000000", "99999999999999999999", "1.7976931348623157e308", "4.9e-324", "",
)  # fmt: skip
WHITE = (
    "\n", "\n\n", " ", "  ", "\t", "\r", "\r\n", "\x0b", "\x0c", "\x00", "\x1c", "\x85", "\u2028", "\xa0", "=", "==",
    ":",
)  # fmt: skip


def mutated(text: str, random: Random) -> str:
    """A text that differs in one to three places, its tree sizes mended in most."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        lines, at = text.split("\n"), random.randrange(len(text))
        line = random.randrange(len(lines))
        match random.randrange(9):
            case 0:
                text = text[:at] + random.choice("0123456789-. =\nxT[]:_") + text[at + 1 :]
            case 1:
                text = text[:at] + random.choice(WHITE) + text[at + random.randrange(2) :]
            case 2:
                other = random.randrange(len(text))
                text = text[:at] + text[other] + text[at + 1 :]
            case 3:
                text = "\n".join([*lines[:line], random.choice(lines), *lines[line:]])
            case 4:
                text = "\n".join([*lines[:line], *lines[line + random.randrange(1, 3) :]])
            case 5:
                other = random.randrange(len(lines))
                lines[line], lines[other] = lines[other], lines[line]
                text = "\n".join(lines)
            case 6 | 7:
                numbers = list(re.finditer(r"(?<=[= ])-?[0-9][^ \n]*", text))
                if numbers:
                    number = random.choice(numbers)
                    value = random.choice((*INTERESTING, random.choice(numbers)[0], random.choice(numbers)[0]))
                    text = text[: number.start()] + value + text[number.end() :]
            case _:
                text = text[:at] if random.random() < 0.3 else text[:at] + text[at + random.randrange(1, 9) :]
    sized = random.random() < 0.9 and re.search("^Tree=", text, re.MULTILINE)
    return edited_text(text, "^Tree=", "Tree=") if sized else text


def test_no_text_that_passes_kills_lightgbm_or_is_read_otherwise_by_it() -> None:
    random = Random(7)
    seeds = (
        TEXT,
        grown(trees=2, leaves=3, zero_as_missing=True).model_to_string(),
        grown(trees=2, min_data_in_leaf=10_000).model_to_string(),
        grown(trees=1, leaves=70).model_to_string(),
    )
    passed = 0
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        for _ in range(1_500):
            text = mutated(random.choice(seeds), random)
            try:
                trees = read_trees(text, FEATURES)
            except ModelError:
                continue
            forest, passed = lay_out_trees(trees)[0], passed + 1
            try:
                margin = child.submit(ask_lightgbm, text).result()
            except BrokenExecutor:
                pytest.fail(f"LightGBM did not survive {text[:3_000]}")
            if margin is not None and forest is not None:
                np.testing.assert_array_equal(forest_sums(forest, matrix(20)), margin, err_msg=text[:3_000])
    assert passed > 150, "most mutants are refused; without those that pass, nothing is tested"
