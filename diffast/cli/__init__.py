"""The command line: `diffast demo`, `sample`, `tune`, `profile`, `bench`, `doctor`."""

from diffast.cli.command import main as main
