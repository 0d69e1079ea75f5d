"""Plans: a solver's whole run as float64 matrices that check themselves."""

from diffast.plan.plan import Plan as Plan
from diffast.plan.unroll import Unrolled as Unrolled
from diffast.plan.unroll import unroll as unroll
