"""Options declared on dataclasses become the parameters of a command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from sdm.cli.options import Change, takes_options
from sdm.request.options import Option, Options


@dataclass(frozen=True, kw_only=True)
class Place(Options):
    names: Annotated[tuple[str, ...], Option("Names.", argument=True)] = ()
    box: Annotated[tuple[float, float] | None, Option("A box.", panel="Where", metavar="WEST EAST")] = None
    also: Annotated[tuple[str, ...], Option("More.", panel="Where")] = ()


@dataclass(frozen=True, kw_only=True)
class Work(Options):
    folder: Annotated[Path, Option("Where to.", flags=("--out", "-o"))]
    count: Annotated[int, Option("How many.", panel="Work", low=1, high=9)] = 4
    fast: Annotated[bool, Option("Be quick.")] = False
    loud: Annotated[bool, Option("Be loud.")] = True


def call(*arguments, **settings):
    """(What the command was called with, its output): one dictionary for each group."""
    calls = []
    app = typer.Typer()

    @app.command()
    @takes_options(**settings)
    def command(place: Place, work: Work) -> None:
        """Do it."""
        calls.append((place, work))

    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return (calls[0] if calls else result.exit_code), result.output


def test_defaults_are_those_of_the_fields():
    (place, work), _ = call("--out", "x")
    assert (place, work) == (Place(), Work(folder=Path("x")))
    assert work.folder == Path("x") and place.names == ()


def test_values_arrive_in_their_groups():
    (place, work), _ = call(
        "a", "b", "--box", 1, 2.5, "--also", "c", "--also", "d", "-o", "x", "--count", 9, "--fast", "--no-loud"
    )
    assert place == Place(names=["a", "b"], box=(1.0, 2.5), also=["c", "d"])
    assert work == Work(folder=Path("x"), count=9, fast=True, loud=False)


@pytest.mark.parametrize("arguments", [[], ["-o", "x", "--count", "0"], ["-o", "x", "--count", "10"], ["--no-fast"]])
def test_what_is_missing_out_of_bounds_or_unknown(arguments):
    code, output = call(*arguments)
    assert code == 2 and "Usage" in output


def test_help_has_texts_metavars_panels_and_defaults():
    _, text = call("--help")
    for words in ("Do it.", "Where to.", "WEST EAST", "─ Where ─", "─ Work ─", "[default: 4]", "1<=x<=9", "required"):
        assert words in text
    assert "None" not in text and "--no-fast" not in text


def test_a_command_differs_where_it_says_so():
    changes = {"count": Change("Number of them.", default=7), "box": Change("The box.")}
    (_, work), _ = call("-o", "x", changes=changes, leave_out=["also"], panels=["Where"])
    assert work.count == 7
    _, text = call("--help", changes=changes, leave_out=["also"], panels=["Where"])
    assert "Number of them." in text and "How many." not in text and "--also" not in text
    assert "─ Where ─" in text and "─ Work ─" not in text


def test_one_name_in_two_groups_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Other(Options):
        count: Annotated[int, Option("Another.")] = 1

    def command(work, other) -> None: ...

    command.__annotations__ = {"work": Work, "other": Other}
    with pytest.raises(TypeError, match="two options named 'count'"):
        takes_options()(command)


def test_a_callback_acts_before_other_options_are_read():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Early(Options):
        need: Annotated[str, Option("Needed.")]
        stop: Annotated[bool, Option("Stop.", callback=lambda asked: asked and (seen.append(1), _exit()))] = False

    def command(early) -> None: ...

    command.__annotations__ = {"early": Early}
    app = typer.Typer()
    app.command()(takes_options()(command))
    assert CliRunner().invoke(app, ["--stop"]).exit_code == 0 and seen == [1]
    assert CliRunner().invoke(app, []).exit_code == 2


def _exit():
    raise typer.Exit()
