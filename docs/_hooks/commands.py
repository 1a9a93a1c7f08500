"""Hook of mkdocs: the options of all commands, read from the programs themselves, in place of a mark on a page."""

import click
import typer

from sdm.cli import complete
from sdm.cli.app import map_app

MARK = "<!-- commands -->"


def on_page_markdown(markdown, **_):
    """Put the commands in place of the mark."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def commands():
    """A section for each command."""
    everything = complete()
    parts = section("taxabind-map", typer.main.get_command(map_app), 2)
    parts += section("sdm", typer.main.get_command(everything), 2)
    return "\n".join(parts)


def section(name, command, depth):
    """The lines that describe a command and those in it."""
    lines = [f"{'#' * min(depth, 4)} `{name}`", "", (command.help or "").split("\f")[0].strip(), ""]
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for key, inner in sorted(command.commands.items()):
            lines += section(f"{name} {key}", inner, depth + 1)
        return lines
    lines += ["| Option | |", "|---|---|"]
    for option in command.params:
        flags = ", ".join(getattr(option, "opts", [])) or option.name
        metavar = f" {option.metavar}" if option.metavar else ""
        text = " ".join((getattr(option, "help", None) or "").split())
        lines.append(f"| `{flags}{metavar}` | {text} |".replace("|NAME`", "\\|NAME`"))
    return [*lines, ""]
