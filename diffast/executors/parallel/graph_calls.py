"""The network calls of a parallel run as replays of CUDA graphs.

A run with a fixed number of rows has its points and what is sent in two places by turns, so two
graphs serve all rounds. The host decides after every round which stages are settled; what it sends
is read by the graphs, and the few ops around a call are launched one by one.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from diffast.executors.cuda_graph import Backend, Graph, GraphError
from diffast.executors.parallel.batched_network import SENT, BatchedNetwork

MOST = 4  # graphs of one run; a run whose points lie elsewhere in every round has none


class GraphCalls:
    """Calls a network on rows, by a graph wherever the same memory is met again.

    The first call on some memory is an ordinary one, after which kernels and compilers are ready;
    the second is captured. The outputs lie in the graph's memory and hold until it is replayed.
    """

    def __init__(self, network: BatchedNetwork, backend: Backend):
        """Has no graph yet."""
        self.network, self.backend = network, backend
        # By addresses: the graph, its outputs, and what has to stay where it is.
        self.graphs: dict[tuple, tuple[Graph, list[torch.Tensor], Any]] = {}
        self.met: set[tuple] = set()
        self.refused = False

    def __call__(self, x: torch.Tensor, sent: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Returns the outputs for rows x, see `BatchedNetwork`."""
        read = [x, *(sent[name] for name in SENT if name in sent)]
        key = tuple((t.data_ptr(), tuple(t.shape)) for t in read)
        if key in self.graphs:
            self.network.rows_called += len(x)
        elif self.refused or key not in self.met or len(self.graphs) == MOST:
            self.met.add(key)
            return self.network(x, sent)
        elif not self._capture(key, x, sent, read):
            return self.network(x, sent)
        graph, outputs, _ = self.graphs[key]
        graph.replay()
        return list(outputs)

    def _capture(
        self, key: tuple, x: torch.Tensor, sent: dict[str, torch.Tensor], read: list[torch.Tensor]
    ) -> bool:
        """Captures a call; returns whether that was possible."""
        outputs: list[torch.Tensor] = []
        called = self.network.rows_called

        def work() -> None:
            outputs[:] = self.network(x, sent)

        try:
            graph = Graph(work, self.backend, warm_ups=0)
        except GraphError as error:
            self.refused, self.network.rows_called = True, called
            warnings.warn(
                f'sample_parallel: executor="graph" calls the network kernel by kernel: {error}',
                RuntimeWarning,
                stacklevel=5,
            )
            return False
        self.graphs[key] = graph, outputs, read
        return True
