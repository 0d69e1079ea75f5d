"""The rounds of an adaptive run as replays of one CUDA graph.

A round's work reads nothing from the device, and with all samples in the batch its tensors are the
same in every round. After each replay the samples' statuses are copied to the host, and the host
waits for those of the replay before: the device never waits for the host, and at most one replay is
made after the last sample has finished.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from diffast.executors.adaptive.rounds import AdaptiveRun
from diffast.executors.cuda_graph import Graph, GraphError, backend_of

STATUS = 0  # its column in the counts


class GraphRounds:
    """Makes the rounds of a run that has been started.

    The first rounds are made one by one, so that kernels and compilers are ready. Then as many
    rounds are captured as the run takes to do the same again (`AdaptiveRun.period`). Where they
    cannot be captured, a warning says why, and all rounds are made one by one.

    Raises:
        ValueError: if the device has no graphs.
    """

    def __init__(self, run: AdaptiveRun):
        """Makes no round yet."""
        self.run, self.backend = run, backend_of("sample_adaptive", run.ids.device)
        self.graph: Graph | None = None
        self.refused = False
        self._statuses: Callable[[], np.ndarray] | None = None  # of the replay before

    def round(self) -> int:
        """Makes a round, or all rounds of the graph; returns how many network calls those are."""
        run = self.run
        if self.graph is None and not self.refused and run.rounds >= run.period:
            self._capture()
        if self.graph is None:
            run.round()
            return 1
        self.graph.replay()
        run.rounds += run.period
        before, self._statuses = (
            self._statuses,
            self.backend.fetch(run.batch.now["counts"][:, STATUS]),
        )
        if before is not None:
            run.batch.retire(before())
        return run.period

    def _capture(self) -> None:
        """Captures a period, which begins where the run's first round began."""
        run, made = self.run, self.run.rounds
        if made % run.period:
            return

        def work() -> None:
            for _ in range(run.period):
                run.work()

        try:
            self.graph = Graph(work, self.backend, warm_ups=0)
        except GraphError as error:
            self.refused = True
            warnings.warn(
                f'sample_adaptive: executor="graph" runs round by round: {error}',
                RuntimeWarning,
                stacklevel=4,
            )
        finally:
            run.rounds = made  # what is captured is not made
