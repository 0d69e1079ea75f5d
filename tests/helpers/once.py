"""What the processes that share the tests make once: compiled emulators, reports of compilers."""

import fcntl
import os


def made_once(tmp_path_factory, name, make):
    """Returns the run's folder of that name; `make(folder)` fills it, in the first process only.

    The others wait for it. If it fails, each of them tries and reports for itself.
    """
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent  # of all workers
    folder, done = home / name, home / f"{name}.done"
    with open(home / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
