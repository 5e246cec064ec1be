"""The architecture as docs/architecture.md tells it, checked: who knows devices and ConfigDict."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "switokd_jax"


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = [*path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("", "data"):
            found[name] = path
    return found


def test_only_distribution_knows_devices() -> None:
    users = {
        name
        for name, path in modules().items()
        if re.search(
            r"jax\.(devices|sharding|pmap|device_put|process_index)|NamedSharding|lax\.p(mean|sum)", path.read_text()
        )
    }
    # BatchNorm averages over the axis that it is told, as flax's does.
    assert {name.partition(".")[0] if name.startswith("parallel") else name for name in users} == {
        "parallel",
        "models.ops.batch_norm",
    }


def test_only_config_knows_configdict() -> None:
    users = {name for name, path in modules().items() if "ml_collections" in path.read_text()}
    assert users == {"config", "cli", "main", "train.loop", "workdir.resume"}, "cli reads it, the others pass it on"


def test_links_in_docs_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
