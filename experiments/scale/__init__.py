"""Estimates for more devices than one machine has."""
