"""The command line: which commands there are, and what becomes of their errors.

The flags of a stage are made from its settings model (`config/`, `flags.py`), so each setting is written once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError, validators
from cyclopts.exceptions import CoercionError, RepeatArgumentError

from foreknow import signals
from foreknow.commands.results import card, compare, explore, lm_eval, report
from foreknow.commands.sources import build, entityquestions, facts, forecast, models, popqa
from foreknow.commands.stages import audit, check, evaluate, extract, mix, remedies, study, tune
from foreknow.config import (
    AuditConfig,
    CheckConfig,
    EvaluateConfig,
    ExtractConfig,
    MixConfig,
    RemediesConfig,
    TuneConfig,
)
from foreknow.config.shared import DEFAULT_FACTS
from foreknow.console import plain
from foreknow.distributed import process_group
from foreknow.errors import ConfigError, ForeknowError
from foreknow.flags import HELP, HELP_ALL, epilogue, with_flags
from foreknow.format.numbers import enumeration
from foreknow.progress import log_to_stderr
from foreknow.quickstart import after_quickstart, can_ask, count_steps, quickstart_steps, walk
from foreknow.settings import Settings
from foreknow.settings_file import commented_yaml, json_schema
from foreknow.stages.study.settings import StudyConfig
from foreknow.version import __version__


def quickstart(
    data: str = DEFAULT_FACTS,
    /,
    *,
    model: str | None = None,
    out: Path = Path("runs/quickstart"),
    minutes: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 1.0,
    yes: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Walk through the first steps on DATA: check, audit, mix. Every command is shown before it runs.

    Parameters
    ----------
    data
        A data file, or 'facts' for the packaged facts.
    model
        The model, as audit takes it (default: a packaged one).
    out
        The folder for what the steps write.
    minutes
        How many minutes the audit may take.
    yes
        Run all steps without waiting for a key, as where there is no terminal.
    """
    if out.suffix and out.is_file():
        raise ConfigError(f"--out {out}: is a file, expected a folder")
    app, asks = command_line(), can_ask() and not yes

    def run(words: Sequence[str]) -> None:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")

    if walk(quickstart_steps(data, model, out, minutes), count_steps(data), run, ask=asks):
        print(f"\n{after_quickstart(data, model, out)}")


SETTINGS: Final[dict[str, type[Settings]]] = {
    "check": CheckConfig,
    "audit": AuditConfig,
    "extract": ExtractConfig,
    "mix": MixConfig,
    "tune": TuneConfig,
    "evaluate": EvaluateConfig,
    "study": StudyConfig,
    "remedies": RemediesConfig,
}
"""The verbs that have settings, in the order in which one uses them."""


def config(
    verb: Literal["check", "audit", "extract", "mix", "tune", "evaluate", "study", "remedies"],
    /,
    *,
    schema: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Print a settings file for VERB: every setting with its default and a comment.

    Parameters
    ----------
    verb
        The command whose settings to print.
    schema
        Print the JSON schema of the file, with which an editor checks and completes it.
    """
    own = {"study": "foreknow study FILE", "remedies": "foreknow study remedies --config FILE"}
    how = own.get(verb, f"foreknow {verb} --config FILE")
    model = SETTINGS[verb]
    print(json_schema(verb, model) if schema else commented_yaml(verb, model, how=how), end="\n" if schema else "")


def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None, output: Path | None = None) -> None:
    """Install tab completion for your shell.

    Parameters
    ----------
    shell
        The shell to install it for (default: the one you are in).
    output
        The file to write (default: where that shell looks for completions).
    """
    from cyclopts.completion.detect import ShellDetectionError  # keeps the completion engine out of every start

    try:
        written = command_line().install_completion(shell=shell, output=output)
    except ShellDetectionError:
        raise ConfigError("--shell: found no shell above this command, expected --shell bash, zsh or fish") from None
    print(f"completion: {written}; open a new shell to use it")


def command_line(*, every_flag: bool = True) -> App:
    """The parser with all verbs. Unless `every_flag` is set, the help of a verb shows its common flags only."""
    app = App(
        name="foreknow",
        version=__version__,
        help="Know what your language model knows before you fine-tune it.",
        help_format="plaintext",
        help_flags=(*HELP, HELP_ALL),
        suppress_keyboard_interrupt=False,
    )
    app[HELP_ALL].help = "Show the help of a command; --help-all shows every flag that it has."
    data = App(
        name="data", help_flags=(*HELP, HELP_ALL), help="Write data sets: the paper's, PopQA, the packaged facts."
    )
    data.command(entityquestions)
    data.command(popqa)
    data.command(facts)
    export = App(
        name="export",
        help_flags=(*HELP, HELP_ALL),
        help="Write the rows of an audit as tasks of other evaluation tools.",
    )
    export.command(lm_eval, name="lm-eval")
    lab = App(
        name="lab",
        help_flags=(*HELP, HELP_ALL),
        help="Train a small model of which every exposure of every fact is counted.",
    )
    lab.command(build)
    with_settings: list[Callable[..., None]] = [check, audit, extract, mix, tune, evaluate]
    for verb in with_settings:
        name, model = verb.__name__, SETTINGS[verb.__name__]
        app.command(with_flags(verb, model, every=every_flag), help_epilogue=epilogue(name, model, every=every_flag))
    app.command(_study_app(every_flag))
    others: list[Any] = [quickstart, forecast, compare, report, explore, card, export, data, lab, models, config]
    for command in others:
        app.command(command)
    verbs = [name for name in SETTINGS if name != "remedies"]
    rest = ("forecast", "compare", "report", "explore", "card", "export", "data", "lab", "models", "config")
    for at, name in enumerate(("quickstart", *verbs, *rest)):
        app[name].sort_key = at  # the order in which one uses them
    app.command(install_completion, name="--install-completion")
    return app


def _study_app(every_flag: bool) -> App:
    """The verb study, whose own command `remedies` has other settings."""
    app = App(
        name="study", help_flags=(*HELP, HELP_ALL), help_epilogue=epilogue("study", StudyConfig, every=every_flag)
    )
    for flag in (*HELP, HELP_ALL):
        app[flag].show = False  # the panel of commands has the command alone
    app.default(with_flags(study, StudyConfig, every=every_flag))
    app.command(
        with_flags(remedies, RemediesConfig, every=every_flag),
        help_flags=(*HELP, HELP_ALL),
        help_epilogue=epilogue("remedies", RemediesConfig, every=every_flag, command="study remedies"),
    )
    return app


NEXT_STEPS: Final = """\
foreknow labels every row of a fine-tuning file by what your model expresses already. Three things to do next:

  foreknow quickstart
      try it: labels packaged facts with a packaged model, and shows every command that it runs; two minutes
  foreknow check train.jsonl
      finds what is wrong with your own file, without a model
  foreknow audit train.jsonl --model MODEL --out runs/train --dry-run
      says what an audit of your file with your model would cost; without --dry-run it does it

All commands: foreknow --help. In Python: import foreknow; help(foreknow.audit)"""
"""What `foreknow` alone prints."""


def _missing(error: MissingArgumentError) -> str:
    """Return what a command needs and was not given, with the first words of its help."""
    assert error.argument is not None
    if error.keyword:
        return f"found no value after {error.argument.name}, which it needs"
    about = (error.argument.parameter.help or "").split(", a folder or", maxsplit=1)[0].rstrip(".")
    return f"found no {error.argument.name}, which it needs" + (f": {about[0].lower()}{about[1:]}" if about else "")


def _expected(kind: Any) -> list[str]:
    """Return what a flag of this type takes, in words: a whole number, auto, all."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    return [words[kind]] if kind in words else [word for part in get_args(kind) for word in _expected(part)]


def format_usage_error(error: CycloptsError) -> str:
    """Return a parser's error in one line or two; where words are left over, what to do with them."""
    left = getattr(error, "unused_tokens", None)
    verb = " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{verb}: {_missing(error)}\nAll that it takes: foreknow {verb} {HELP_ALL}"
    if isinstance(error, RepeatArgumentError):
        return f"{verb}: found {error.token.keyword} more than once, expected it once"
    if isinstance(error, CoercionError) and error.token is not None and error.token.keyword:
        if isinstance(error.msg, str):  # that of a reader of our own (`flags.whole`)
            return f"{error.token.keyword}: {error.msg}"
        if expected := _expected(error.target_type):
            found = plain(repr(error.token.value))
            return f"{error.token.keyword}: found {found}, expected {enumeration(expected, 'or')}"
    if not left or not isinstance(error, UnusedCliTokensError):
        return " ".join(str(error).split())
    text = f"{verb}: found {plain(' '.join(map(str, left[:3])))}, more than it takes"
    if not any(str(word).startswith("-") for word in left):
        text += (
            "; expected one DATA: put several files into a folder and name that, and their names tell the splits"
            if verb in ("audit", "extract", "evaluate")
            else ""
        )
    return f"{text}\nAll that it takes: foreknow {verb} {HELP_ALL}"


def main(words: Sequence[str] | None = None) -> None:
    """The command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate was crossed, 130 interrupted, 143 ended."""
    process_group.silence_ranks()
    log_to_stderr()
    if (
        words is None and not process_group.is_distributed()
    ):  # several processes that train together are ended by their launcher
        signals.install_sigterm()
    given = sys.argv[1:] if words is None else words
    if not given:
        print(NEXT_STEPS)
        return
    app = command_line(every_flag=not set(HELP).intersection(given))
    try:
        # the parser takes a lone "-" for an option without a name
        app(["stdin:" if word == "-" else word for word in given], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"foreknow: {format_usage_error(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except ForeknowError as error:
        print(f"foreknow: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        signals.cancel_repeat()
        print("\nforeknow: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(143 if isinstance(stop, signals.Terminated) else 130) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
