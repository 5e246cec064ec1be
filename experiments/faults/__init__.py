"""Runs that are cut short."""
