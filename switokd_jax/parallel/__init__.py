"""Devices and processes. No other package handles meshes, shardings or collectives."""
