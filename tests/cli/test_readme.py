"""The README's command block is what the command line says of itself."""

from pathlib import Path

import pytest
import typer

from dicomguard.cli.app import app

README = Path(__file__).parents[2] / "README.md"


def commands(command, path):
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")
    else:
        yield path, command


def usage(path, command):
    words = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            words.append(parameter.metavar or parameter.name.upper())
            continue
        option = next((o for o in parameter.opts if len(o) == 2), parameter.opts[0])
        flag = option if parameter.is_flag else f"{option} {parameter.metavar or parameter.name.upper()}"
        words.append(flag if parameter.required else f"[{flag}]")
    return " ".join([path, *words])


def block():
    lines = []
    for path, command in commands(typer.main.get_command(app), "dicomguard"):
        summary = (command.help or "").split("\n\n", maxsplit=1)[0].split(". ", maxsplit=1)[0].rstrip(".")
        lines.append(f"{usage(path, command)}\n    {' '.join(summary.split())}")
    return "\n".join(lines)


def test_the_readme_shows_the_commands_as_they_are():
    text = README.read_text("utf-8")
    shown = text.split("tests/cli/test_readme.py -->\n```\n")[1].split("\n```")[0]
    assert shown == block()


@pytest.mark.parametrize(("path", "command"), [*commands(typer.main.get_command(app), "dicomguard")])
def test_every_command_and_option_explains_itself(path, command):
    assert command.help, path
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, f"{path} {parameter.name}"
