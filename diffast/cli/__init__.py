"""The command line: `diffast demo`, `sample`, `profile`, `bench`, `doctor`."""

from diffast.cli.command import main as main
