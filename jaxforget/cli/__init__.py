"""The command line: parse, call a study, print. Heavy imports wait until a command needs them."""

import typer

from jaxforget.cli import conducting, showing
from jaxforget.cli.console import quiet_logs

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make language models forget on purpose, and measure what they keep.",
)

for command in (
    conducting.unlearn,
    conducting.finetune,
    conducting.continual,
    conducting.acquire,
    conducting.evaluate,
    conducting.sweep,
    conducting.audit,
    conducting.quickstart,
    showing.report,
    showing.requests,
    showing.convert,
    showing.methods,
    showing.strategies,
    showing.plan,
    showing.doctor,
):
    app.command()(command)


def main() -> None:
    """Entry point of the `jaxforget` command."""
    app(prog_name="jaxforget")  # the same name however python was started


__all__ = ["app", "main", "quiet_logs"]
