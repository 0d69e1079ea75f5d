"""The command line: `diffast demo`, `sample`, `plan`, `tune`, `profile`, `bench`, `doctor`."""

from diffast.cli.command import main as main
