"""Placement: which node keeps which model, decided slot by slot from demand (inference delivery networks)."""

from testbed.placement.base import Fixed, Placement, Slot
from testbed.placement.problem import Problem
from testbed.placement.registry import make_placement

__all__ = ["Fixed", "Placement", "Problem", "Slot", "make_placement"]
