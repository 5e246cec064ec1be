"""Launchers of runs with several processes."""
