"""All metadata is in setup.cfg; pip's editable installs without build isolation want this file."""

from setuptools import setup

setup()
