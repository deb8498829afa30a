"""The command line, thin over the Python functions."""

from __future__ import annotations

from stpred.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app()
