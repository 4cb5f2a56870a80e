"""Placement: which node keeps which model, decided slot by slot from demand (inference delivery networks)."""
