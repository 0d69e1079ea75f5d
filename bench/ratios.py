"""What the benchmarks of this folder time with: the module that `diffast bench` times with."""

from diffast.bench.ratios import Timing as Timing
from diffast.bench.ratios import interleaved as interleaved
