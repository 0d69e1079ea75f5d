"""The command line: `diffast demo`, `sample`, `profile`, `doctor`."""

from diffast.cli.command import main as main
