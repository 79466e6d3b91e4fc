"""Command line of the library: `ttepretrain info | embed | risk | doctor`. Every command has a file of its own.

A command's file defines SUMMARY, DESCRIPTION and EXAMPLE for its --help, `add_arguments(parser)` and `run(parsed)`.
It imports torch and pyarrow inside `run` only, so that --help answers at once.
"""

from __future__ import annotations

import argparse

from ttepretrain.commands import doctor, embed, info, risk
from ttepretrain.errors import exit_with

COMMANDS = {"info": info, "embed": embed, "risk": risk, "doctor": doctor}


def main() -> None:
    """Entry point of the `ttepretrain` script."""
    exit_with(run, "ttepretrain")


def run(arguments: list[str]) -> None:
    """Run one command. Raises the DeclaredError that decides the exit code."""
    parsed = parser().parse_args(arguments)
    COMMANDS[parsed.command].run(parsed)


def parser() -> argparse.ArgumentParser:
    """Parser of all commands; `command` of its result is a key of COMMANDS."""
    parser = argparse.ArgumentParser(
        prog="ttepretrain",
        description="Use 3D CT encoders pretrained on time-to-event data.",
        epilog="Run `ttepretrain COMMAND --help` for the options and an example of a command.",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.SUMMARY,
                description=command.DESCRIPTION,
                epilog=f"example:\n  ttepretrain {name} {command.EXAMPLE}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser
