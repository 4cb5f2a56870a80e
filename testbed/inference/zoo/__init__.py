"""Builders of the models that ship with the testbed: one file per data set."""
