"""Output of a command: progress, warnings and expected errors, in the words of the command line."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from stpred._core import progress
from stpred._core.checks import InputError, InputWarning
from stpred._core.files import reason
from stpred.cli.messages import as_options

console = Console(stderr=False, soft_wrap=True)

errors = Console(stderr=True, soft_wrap=True)


@dataclass
class Session:
    """Options before the command, and the names of the command's own options."""

    quiet: bool = False
    verbose: bool = False
    options: frozenset[str] = frozenset()


session = Session()


@dataclass
class Translator:
    """Translates messages of Python functions; `slide` is the one that is worked on."""

    known: frozenset[str]
    slide: str | None = None

    def __call__(self, message: object) -> str:
        """Return a message in the words of the command line."""
        return as_options(str(message), known=self.known, slide=self.slide)


class _LogHandler(logging.Handler):
    def __init__(self, translate: Translator) -> None:
        super().__init__()
        self.translate = translate

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(escape(self.translate(record.getMessage())), highlight=False)


@contextlib.contextmanager
def plain_messages() -> Iterator[Translator]:
    """Turn expected errors into one sentence and exit code 2, and show warnings and progress.

    Messages name options of the command line where Python's name parameters.
    """
    from stpred import settings

    translate = Translator(session.options)

    def show(message: Any, *_: Any, **__: Any) -> None:
        errors.print(f"[yellow]Warning:[/yellow] {escape(translate(message))}", highlight=False)

    logger = logging.getLogger("stpred" if session.verbose else "stpred.fits")
    before, progress_before = logger.level, settings.progress
    handler = _LogHandler(translate)
    if not session.quiet:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    else:
        settings.progress = False
    with warnings.catch_warnings(), progress.lines():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", category=InputWarning)
        warnings.showwarning = show
        try:
            yield translate
        except (InputError, OSError) as error:
            text = translate(error) if isinstance(error, InputError) else _system_message(error)
            errors.print(f"[red]Error:[/red] {escape(text)}", highlight=False)
            raise typer.Exit(2) from error
        finally:
            logger.setLevel(before)
            logger.removeHandler(handler)
            settings.progress = progress_before


def _system_message(error: OSError) -> str:
    """Return why the system refused, and the file if it names one."""
    return f"{reason(error)}: {str(error.filename)!r}." if error.filename is not None else f"{reason(error)}."
