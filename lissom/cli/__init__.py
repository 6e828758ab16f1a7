"""The command line: one function for each verb. They import when they run what they need: help is there at once."""

import sys

import typer

from lissom.cli.hand import deploy, export, verify
from lissom.cli.learn import recover
from lissom.cli.make import compress, optimize, recut
from lissom.cli.measure import bench, certify, evaluate, hardware
from lissom.cli.plan import explain, plan, sensitivity, techniques
from lissom.cli.serve import keys, serve
from lissom.cli.show import one_line
from lissom.errors import LissomError

VERBS = (
    compress,
    optimize,
    recut,
    recover,
    explain,
    sensitivity,
    plan,
    techniques,
    evaluate,
    certify,
    bench,
    hardware,
    export,
    deploy,
    serve,
    verify,
    keys,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A trained PyTorch model, as small and fast as its quality budget allows, proven and served.",
)
for verb in VERBS:
    app.command(context_settings={"auto_envvar_prefix": f"LISSOM_{verb.__name__.upper()}"})(verb)


def main() -> None:
    """The command `lissom`: a user's mistake is one line on the error stream and exit code 2."""
    try:
        app()
    except LissomError as error:
        print(f"lissom: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
