"""Plans: a solver's whole run as float64 matrices over named registers, which check themselves."""

from diffast.plans.plan import Plan as Plan
from diffast.plans.registers import Stages as Stages
from diffast.plans.registers import one_call_plan as one_call_plan
from diffast.plans.unroll import unroll as unroll
