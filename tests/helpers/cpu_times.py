"""A pytest plugin that writes each test's CPU seconds, children included: what slow.txt is made by.

    CPU_TIMES=times.txt PYTHONPATH=tests/helpers python -m pytest -p cpu_times

CPU seconds hardly depend on what else the machine does. Without xdist: one process, one file.
"""

import os
import resource

import pytest


def seconds():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    begin = seconds()
    done = yield
    slow = " slow" if item.get_closest_marker("slow") else ""
    with open(os.environ["CPU_TIMES"], "a") as file:
        file.write(f"{seconds() - begin:.3f} {item.nodeid}{slow}\n")
    return done
