"""Writes docs/papers.md: every table and figure of both papers, their published numbers, and the command for each.

python experiments/papers_page.py            # after a change of a table's settings
python experiments/papers_page.py --check    # exit status 1 if the page is not that of the tables
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments import (
    ablation_threshold,
    gap_study,
    table_cifar,
    table_imagenet,
    table_multi_network,
    table_tiny_imagenet,
    table_uniokd,
)
from experiments.grids import Setting, load
from experiments.study import Study

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"
METHODS = ("vanilla", "dml", "kdcl", "switokd", "uniokd")
HEAD = """# The papers' tables and figures

<!-- Written by experiments/papers_page.py from the settings of the tables; edit the script. -->

What the papers on SwitOKD (ECCV 2022) and UniOKD show for classification, and the command that makes it here. Top-1 in
percent as published, for the networks in the order of the second column: means of three seeds, of the best test epoch.
A dash is a number that our sources do not quote. [Measured](measured.md) and [Performance](performance.md) have ours;
`--plan` tells how long a command takes.
"""
NOTES = """
## Figures

| in the papers | command | file |
|---|---|---|
| figure 1 left: resnet20 under growing teachers | `python experiments/gap_study.py` | `gap.png` |
| figures 1 right, 4: gradients at the logits | then `python -m switokd_jax.figures runs/gap_study` | `gradients.png` |
| gap and threshold | `make demo` | `switching.png` |
| Grad-CAM maps, and as surfaces | then `python -m switokd_jax.figures runs/digits` | `heat.png`, `surfaces.png` |
| time that the pauses save (27 to 35 % in a secondary source) | any table | its column 'saved %' |

At the logits of the student, the L1 norm of the KL term's gradient (temperature 1) is the gap G, that of the
cross-entropy's is d_s, and that of their difference d_t: the figure needs only what every run of a switch logs.

## What we do not have

- The tables of both papers are images in their public repositories. We have the numbers that secondary sources quote;
  the pairs of UniOKD without numbers are those of the networks that its public code imports, or of the students that
  its tables are known to have, with a teacher of our choice.
- UniOKD's ViT-Base of 28.6M and ViT-Large of 76.2M parameters: the public code does not contain them, and no usual
  structure has these sizes. `vit_small` (21.4M) and `vit_base` (85.2M) are timm's, with patches for small images.
- Object detection and segmentation: this project classifies.
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
      title: of the section.
      script: that makes the table.
      study: its study.
      settings: names of the settings that the papers have; all if empty.
      text: before the table.
    """

    title: str
    script: str
    study: Study
    settings: tuple[str, ...] = ()
    text: str = ""


SECTIONS = (
    Section("SwitOKD: CIFAR", "table_cifar", table_cifar.STUDY, ("cifar100", "cifar10")),
    Section(
        "SwitOKD: Tiny-ImageNet",
        "table_tiny_imagenet",
        table_tiny_imagenet.STUDY,
        text="The recipe of the second pair is not published; it has that of CIFAR-100.",
    ),
    Section(
        "SwitOKD: ImageNet",
        "table_imagenet",
        table_imagenet.STUDY,
        text="The numbers are those that a secondary source reports.",
    ),
    Section(
        "SwitOKD: three networks (table 7)",
        "table_multi_network",
        table_multi_network.STUDY,
        text="The networks are mobilenet, wrn_16_2 and wrn_16_10.",
    ),
    Section(
        "SwitOKD: growing teachers (figure 1)",
        "gap_study",
        gap_study.STUDY,
        ("cifar100_wrn_16_2", "cifar100_wrn_16_4", "cifar100_wrn_16_6", "cifar100_wrn_16_8"),
    ),
    Section("SwitOKD: ablations", "ablation_threshold", ablation_threshold.STUDY),
    Section(
        "UniOKD: pairs on CIFAR-100",
        "table_uniokd",
        table_uniokd.STUDY,
        text="Networks that end with `_rd` have RepDistiller's form, which the public code imports.",
    ),
)


def page() -> str:
    """Returns the page as Markdown."""
    return "\n".join([HEAD, *map(_section, SECTIONS), NOTES.strip(), ""])


def _section(section: Section) -> str:
    settings = [setting for setting in section.study.full if not section.settings or setting.name in section.settings]
    arms = [arm for arm in dict.fromkeys(arm for s in settings for arm in s.arms) if arm in METHODS]
    arms += [arm for s in settings for arm in s.published if arm not in arms]
    rows = [
        f"| `{setting.name}` | {_networks(setting)} | {' | '.join(_cells(setting, arms))} |" for setting in settings
    ]
    head = f"| `--settings` | networks | {' | '.join(arms)} |"
    parts = [f"## {section.title}", f"    python experiments/{section.script}.py", *filter(None, [section.text])]
    table = "\n".join([head, f"|{'---|' * (2 + len(arms))}", *rows])
    return "\n\n".join([*parts, table]) + "\n"


def _networks(setting: Setting) -> str:
    """Names the models: of a pair first the student's, as papers do."""
    networks = load(setting.config, setting.flags).networks
    names = sorted(networks, key=lambda name: not name.startswith("student"))
    return ", ".join(networks[name].model for name in names)


def _cells(setting: Setting, arms: list[str]) -> list[str]:
    return [_numbers(setting.published.get(arm, {})) if arm in setting.arms else "" for arm in arms]


def _numbers(published: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.2f}" for value in published.values()) or "-"


def main() -> int:
    """Reads the flags; writes the page or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if it is not up to date")
    if parser.parse_args().check:
        return int(PAGE.read_text() != page())
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
