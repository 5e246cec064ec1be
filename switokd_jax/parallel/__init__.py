"""Devices and processes: the only package that knows them."""
