"""Plans: a solver's whole run as float64 matrices over named registers, which check themselves."""

from diffast.plan.plan import Plan as Plan
from diffast.plan.registers import Stages as Stages
from diffast.plan.registers import one_call_plan as one_call_plan
from diffast.plan.unroll import unroll as unroll
