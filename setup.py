"""All metadata is in setup.cfg, but for the configs: they stand beside the package and are installed inside of it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["switokd_jax*"]), "switokd_jax.configs"],
    package_dir={"switokd_jax.configs": "configs"},
)
