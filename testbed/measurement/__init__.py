"""Measurement: record tables, metrics with confidence intervals, validity checks and the report."""
