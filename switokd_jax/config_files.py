"""Config files by name: those of the package are found from any folder."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
# In the repository they stand beside the package, in a wheel inside of it.
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")


def package_configs() -> list[Path]:
    """Returns the config files that come with the package, ordered by name."""
    return next((found for folder in FOLDERS if (found := sorted(folder.glob("[!_]*.py")))), [])


def find_config(name: str) -> str:
    """Returns the path of a config file that is named as on the command line, and the argument after it.

    A file of that path comes first. Otherwise 'digits', 'digits.py' and 'configs/digits.py' are the package's config
    of that name, from any folder. What is neither stays as it is: opening it tells the user so.

    >>> find_config("digits:a,b").endswith("configs/digits.py:a,b")
    True
    >>> find_config("no/such.py")
    'no/such.py'
    """
    path, colon, argument = name.partition(":")
    if not Path(path).is_file():
        by_name = {config.stem: str(config) for config in package_configs()}
        stem = path.removeprefix("configs/").removesuffix(".py")
        path = by_name.get(stem, path)
    return f"{path}{colon}{argument}"
