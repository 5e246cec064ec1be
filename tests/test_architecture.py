"""The architecture as docs/architecture.md tells it, checked: who imports whom, how long files are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "switokd_jax"
# The order of docs/architecture.md: a module imports only what stands before it.
ORDER = [
    *("fields", "files", "losses", "switching", "topology", "methods", "config"),
    *(
        "data.tiny_imagenet",
        "data.encoded",
        "data.decoded",
        "data.shards",
        "data.prepared",
        "data.folder",
        "data.preprocess",
        "data.sources",
    ),
    *("data.augment", "data.batches", "data.resident", "data.stream", "data.feeds"),
    *(
        "models",
        "optim",
        "state",
        "forward",
        "step",
        "calls",
        "distribution",
        "scoring",
        "adapters",
        "plan",
        "manifest",
        "checkpoint",
        "saved",
    ),
    *("interop", "initialise", "workdir", "record", "trained", "gradcam", "cost", "tables", "logs", "finished"),
    *("commands", "console", "session", "figures", "summary", "stopping", "loop", "processes", "catalogue", "main"),
    *("export", "evaluate", "predict", "report", "grid", "sweep"),
]


def place(module: str) -> int:
    """The place of a module, or of the part of the package that it belongs to."""
    return next(i for i, part in enumerate(ORDER) if module == part or module.startswith(f"{part}."))


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = [*path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("", "data"):
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, as 'methods.protocol' or 'config'."""
    known, out = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "switokd_jax":
            base = node.module.removeprefix("switokd_jax").lstrip(".")
            for alias in node.names:
                inner = ".".join(filter(None, [base, alias.name]))
                out.add(inner if inner in known else base)
    return out


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_only_what_stands_before_it(module: str) -> None:
    here = place(module)
    for other in imports(modules()[module]):
        assert place(other) <= here, f"{module} imports {other}, which stands after it"


def test_only_distribution_knows_devices() -> None:
    users = {
        name
        for name, path in modules().items()
        if re.search(
            r"jax\.(devices|sharding|pmap|device_put|process_index)|NamedSharding|lax\.p(mean|sum)", path.read_text()
        )
    }
    # BatchNorm averages over the axis that it is told, as flax's does.
    assert {name.partition(".")[0] if name.startswith("distribution") else name for name in users} == {
        "distribution",
        "models.batch_norm",
    }


def test_only_config_knows_configdict() -> None:
    users = {name for name, path in modules().items() if "ml_collections" in path.read_text()}
    assert users == {"config", "main", "loop", "workdir"}, "main reads it, loop and workdir pass it on whole"


def test_files_stay_short() -> None:
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 250}
    assert not long


def test_docs_name_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for part in {name.split(".")[0] for name in modules()}:
        assert f"`{part}" in text, f"docs/architecture.md does not name {part}"


def test_links_in_docs_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
