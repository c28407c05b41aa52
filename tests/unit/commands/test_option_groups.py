"""Options that are derived from declarations: nothing about them is written a second time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import click
import pytest
from click.testing import CliRunner
from msgspec import Meta, Struct

from pipeline import LabelPolicy, OnlineModel, Thresholds, TimeRange, Training
from pipeline.backtest.report import ReportOptions
from pipeline.commands.backtest import command as backtest
from pipeline.commands.option_groups import declared_options
from pipeline.commands.replay import command as replay
from pipeline.commands.retrain import command as retrain
from pipeline.commands.train import command as train
from pipeline.commands.train_options import TrainOptions
from pipeline.learning.regimes import LabelRegime
from pipeline.replay.replayer import ReplayOptions
from pipeline.retraining.challenger import CycleOptions
from pipeline.retraining.service import ServiceOptions
from pipeline.training.fit import TrainingConfig
from schemas.limits import check_limits


class Inner(Struct, frozen=True, kw_only=True):
    delay_days: Annotated[float, Meta(ge=0, description="Delay.", extra={"option": "--delay", "unit": "days"})] = 7.0
    kind: Annotated[Literal["all", "some"], Meta(description="Kind.")] = "all"


@dataclass(frozen=True, kw_only=True)
class Group:
    share: Annotated[float, Meta(ge=0, lt=1, description="Share.")] = 0.0
    wait_s: Annotated[float, Meta(gt=0, description="Wait.", extra={"option": "--wait"})] = 5_400.0
    scores: Annotated[tuple[float, ...] | list[float], Meta(ge=0)] = ()
    early: Annotated[bool, Meta(description="Early.")] = True
    live: Annotated[bool, Meta(description="Live.", extra={"option": "--compare", "value": "live"})] = False
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_limits(self)


def made(*arguments: str, **more: Any) -> Any:
    found = []

    @click.command()
    @declared_options("group", Group, **more)
    def command(group: Any) -> None:
        found.append(group)

    result = CliRunner().invoke(command, arguments)
    return found[0] if found else result.output


def test_a_group_is_made_of_its_options() -> None:
    assert made() == Group()
    given = ["--share", "0.5", "--wait", "2h", "--no-early", "--compare", "live", "--delay", "36h", "--kind", "some"]
    inner = Inner(delay_days=1.5, kind="some")
    assert made(*given) == Group(share=0.5, wait_s=7_200.0, early=False, live=True, inner=inner)
    assert made("--share", "0.5", makers={Group: dict})["share"] == 0.5
    assert "No such option" in made("--delay", "1d", without=("delay_days",))


def test_help_and_limits_are_those_of_the_declaration() -> None:
    page = " ".join(made("--help").split())
    for text in ("Share. [default: 0.0; 0<=x<1]", "Wait. [default: 90m]", "--early / --no-early", "--compare [live]"):
        assert text in page
    assert "Delay. [default: 7d]" in page
    assert "--scores" not in page
    assert "0<=x<1" in made("--share", "1")
    assert "no finite number" in made("--share", "nan")
    assert "wait_s must be more than 0, not 0.0" in made("--wait", "0")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e300])
def test_what_is_out_of_the_limits_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="wait_s must be more than 0, not"):
        Group(wait_s=value)
    with pytest.raises(ValueError, match="scores must be at least 0, not -2"):
        Group(scores=[1.0, -2.0])


BACKTEST = (TimeRange, Thresholds, OnlineModel, LabelPolicy, LabelRegime, Training, ReportOptions)
OTHERS = [(train, TrainOptions), (train, TrainingConfig), (retrain, ServiceOptions), (retrain, CycleOptions)]


@pytest.mark.parametrize(
    ("command", "kind"), [*((backtest, kind) for kind in BACKTEST), *OTHERS, (replay, ReplayOptions)]
)
def test_an_argument_is_an_option_by_its_declaration(command: click.Command, kind: type) -> None:
    helps = {option.help for option in command.params if isinstance(option, click.Option)}
    hints = [hint for hint in kind.__annotations__.values() if hasattr(hint, "__metadata__")]
    described = {hint.__metadata__[0].description for hint in hints} - {None}
    assert described
    assert described <= helps


class Named(NamedTuple):
    days: Annotated[float, Meta(gt=0, description="Days.")] = 1.0
    changes: Annotated[Sequence[str], Meta(description="Map.", extra={"option": "--map -m changes"})] = ()
    until: Annotated[str | None, Meta(description="Until.", extra={"option": "--until --to"})] = None
    early: Annotated[bool | None, Meta(description="Early.")] = None
    hidden: int = 3


def test_options_have_the_names_of_the_declaration() -> None:
    @click.command()
    @declared_options("named", Named)
    def command(named: Named) -> None:
        click.echo(repr(named))

    assert [option.name for option in command.params] == ["days", "changes", "until", "early"]
    printed = CliRunner().invoke(command, ["-m", "a", "--map", "b", "--to", "x", "--no-early"]).output
    assert printed == f"{Named(1.0, ('a', 'b'), 'x', False)!r}\n"
    assert CliRunner().invoke(command).output == f"{Named()!r}\n"
