"""The command line: which command is meant, its settings, and what its end means as an exit code.

0 done   1 internal error   2 wrong flags   3 bad input or metadata   4 does not fit in memory
5 finished, but a number asked for with --fail-under was missed   6 another host of the run is gone   130 interrupted
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from typing import NamedTuple

from .console import Console, as_json, complain, result
from .errors import DoesNotFitError, InputError


class Command(NamedTuple):
    """Where a command lives, and what it does in a line; imported only when it is used."""

    module: str
    settings: str
    summary: str


COMMANDS = {
    "demo": Command("demo", "Demo", "reconstruct a real needle that ships with jaxtomo, in about a minute"),
    "inspect": Command("inspect", "Inspect", "what a file holds, and what it does not say"),
    "reconstruct": Command("reconstruct", "Reconstruct", "from a tilt series to a volume, its quality and a report"),
    "elements": Command("elements", "Elements", "a volume of every element, from HAADF and maps of counts"),
    "align": Command("align", "Align", "only align a tilt series, for other programs"),
    "simulate": Command("simulate", "Simulate", "a tilt series of a specimen of known truth"),
    "train score": Command("train_score", "TrainScore", "teach the prior of --method diffusion from volumes"),
    "train gan": Command("train_gan", "TrainGan", "teach the networks of --method gan from volumes"),
    "compare methods": Command("compare_methods", "CompareMethods", "several methods on one series, ranked"),
    "compare": Command("compare", "Compare", "how far two volumes agree: PSNR, SSIM, RMSE, FSC"),
    "quantify": Command("quantify", "Quantify", "count and measure the particles or the pores of a volume"),
    "atoms": Command("atoms", "FindAtoms", "atoms, their species and point defects, refined against the images"),
    "report": Command("report", "Report", "write the report of a finished run again"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code. Results go to stdout, everything else to stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        result(_help())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        from . import __version__

        result(f"jaxtomo {__version__}")
        return 0
    if " ".join(argv[:2]) in COMMANDS:
        argv = [" ".join(argv[:2]), *argv[2:]]
    if argv[0] not in COMMANDS:
        of_two = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
        near = of_two or difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(COMMANDS)}."
        return _failed(2, f"no command {argv[0]!r}. {hint}", argv)
    from . import hosts

    try:
        if hosts.several() and hosts.WATCHED not in os.environ:
            return hosts.watched(sys.orig_argv)
    except InputError as error:
        return _failed(3, str(error), argv)
    code = _checked(argv)
    if code not in (0, 5):  # the others are done too
        hosts.leave(code)
    return code


def _checked(argv: list[str]) -> int:
    """Run a command, and make an exit code and a message of whatever it raises."""
    try:
        return _run(argv[0], argv[1:])
    except BrokenPipeError:  # whoever read stdout, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        return _failed(130, str(stop) or "interrupted", argv)
    except InputError as error:
        return _failed(3, str(error), argv)
    except (DoesNotFitError, MemoryError) as error:
        return _failed(4, str(error) or "out of memory. Bin the images with --bin 2.", argv)
    except Exception as error:  # the one place where a bug becomes an exit code
        if "--debug" in argv:
            traceback.print_exc()
        return _failed(*_explained(error), argv)


def _run(name: str, argv: list[str]) -> int:
    from .commands.options import UsageError
    from .settings import parse

    command = COMMANDS[name]
    module = importlib.import_module(f".commands.{command.module}", __package__)
    try:
        settings = parse(getattr(module, command.settings), argv, f"jaxtomo {name}", _config_file(argv))
        outcome = module.run(settings, Console(settings.showing.quiet, ("jaxtomo", *name.split(), *argv)))
    except UsageError as error:
        return _failed(2, f"{error} See jaxtomo {name} --help.", argv)
    except SystemExit as stop:  # tyro has printed help, or what is wrong
        code = stop.code if isinstance(stop.code, int) else 2
        if code and "--json" in argv:
            result(as_json({"error": "wrong flags, see stderr", "exit_code": code}))
        return code
    if outcome.warning:
        complain(outcome.warning)
    if settings.showing.json and outcome.document:
        result(as_json({**outcome.document, "exit_code": outcome.code}))
    elif outcome.text:
        result(outcome.text)
    return outcome.code


def _config_file(argv: list[str]) -> str | None:
    """What --config names, which has to be known before the other flags mean anything."""
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def _failed(code: int, message: str, argv: list[str]) -> int:
    complain(message)
    if "--json" in argv:
        result(as_json({"error": message, "exit_code": code}))
    return code


def _explained(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error nobody expected; XLA reports a lack of memory as one of those."""
    reason = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in reason or "Out of memory" in reason:
        return 4, "the device ran out of memory. Bin the images with --bin 2, or ask for less --thickness."
    from . import hosts

    if type(error).__name__ == "JaxRuntimeError" and hosts.count() > 1:
        return hosts.GONE, f"{hosts.gone()} ({reason[:160]})"
    where = f"{type(error).__name__}: {reason}"[:300]
    return 1, f"a bug in jaxtomo: {where}. Run again with --debug and report what it prints."


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxtomo COMMAND ...",
            "",
            "Electron tomography: from a real tilt series to a volume you can trust.",
            "",
            *lines,
            "",
            "jaxtomo COMMAND --help explains a command. Start with: jaxtomo demo",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
