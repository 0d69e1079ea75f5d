"""How a command that cannot go on says so: one line on stderr, and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

# 2: the call asked for what cannot be; 1: something failed under way; 130: Ctrl-C; 141: a closed
# pipe, as shells count them.
BAD, FAILED, INTERRUPTED, CLOSED = 2, 1, 130, 141
# Set, an unexpected error shows where it came from.
_TRACEBACK = "DIFFAST_TRACEBACK"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and exits with status 2."""
        _say(f"{message} (see {self.prog} --help)")
        raise SystemExit(BAD)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Returns an option's value, also where it is "--", of which argparse makes a list."""
        if arg_strings == ["--"] and action.nargs is None:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


def status_of(work: Callable[[], int]) -> int:
    """Returns the exit status of a command's work, after one line on stderr if it failed."""
    for stream in (sys.stdout, sys.stderr):  # names of files need not be ASCII
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", "") == "strict":
            with contextlib.suppress(Exception):
                reconfigure(errors="backslashreplace")
    try:
        status = work()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        _say(str(error))
        return BAD
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on. The interpreter would say so again when it flushes at its end.
        with contextlib.suppress(Exception):
            if sys.stdout is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except ImportError as error:
        _say(f"this needs {error.name or 'a package'}, which cannot be imported ({error})")
        return BAD
    except MemoryError as error:
        _say(f"there is not enough memory ({error})")
        return FAILED
    except OSError as error:
        _say(_of_file(error))
        return FAILED
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        words = str(error) or "without a message"
        _say(f"{type(error).__name__}: {words} ({_TRACEBACK}=1 shows where)")
        return FAILED


def _of_file(error: OSError) -> str:
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words


def _say(text: str) -> None:
    """Writes one line on stderr, if there is one."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        print(f"diffast: {' '.join(text.split())}", file=sys.stderr, flush=True)
