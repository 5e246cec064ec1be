"""Opens HTML pages in headless Chromium as a reader would: at desktop and phone width, in light and dark.

python experiments/look.py runs/digits/report.html

Saves a screenshot of each variant in a new folder, for you to look at. Reports faults by itself: a page wider than the
screen, an image that does not load, text with too little contrast to its background (WCAG 2.1, below 4.5 to 1), and
anything that the page fetches from elsewhere. The exit status is 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import html
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = {"desktop": 1280, "phone": 390}  # CSS pixels
MAX_HEIGHT = 12_000  # of a screenshot, CSS pixels
# The page is shown in a frame: a window of Chromium is at least 500 pixels wide.
FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe src="{page}" width="{width}" height="{height}"></iframe><pre></pre><script>
const frame = document.querySelector("iframe");
const numbers = color => color.match(/[0-9.]+/g).map(Number);
const opaque = color => (numbers(color)[3] ?? 1) > 0;
const light = color => numbers(color).slice(0, 3).map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
function contrast(one, other) {{
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}}
frame.onload = () => {{
  const page = frame.contentDocument, style = e => frame.contentWindow.getComputedStyle(e), faults = [];
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`${{root.scrollWidth}} pixels wide`);
  for (const image of page.images) if (!image.naturalWidth) faults.push(`not loaded: ${{image.src.slice(0, 60)}}`);
  for (const e of page.body.querySelectorAll("*")) {{
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join(" ").trim();
    if (!text || !e.getClientRects().length) continue;
    let behind = e;
    while (behind && !opaque(style(behind).backgroundColor)) behind = behind.parentElement;
    const ratio = contrast(style(e).color, behind ? style(behind).backgroundColor : "rgb(255, 255, 255)");
    if (ratio < 4.5) faults.push(`contrast ${{ratio.toFixed(1)}}: ${{text.slice(0, 40)}}`);
  }}
  for (const entry of frame.contentWindow.performance.getEntriesByType("resource"))
    if (!entry.name.startsWith("data:")) faults.push(`fetched: ${{entry.name}}`);
  const result = {{height: root.scrollHeight, faults: [...new Set(faults)]}};
  document.querySelector("pre").textContent = JSON.stringify(result);
}};
</script>"""


def chromium() -> str:
    """Returns the path of the browser.

    Raises:
      SystemExit: if there is none.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    if path := next(filter(None, map(shutil.which, names)), None):
        return path
    raise SystemExit(f"none of {', '.join(names)} is installed; install Chromium to look at pages")


def look(page: Path, width: int, dark: bool, picture: Path) -> list[str]:
    """Opens a page, saves a screenshot of all of it, and returns its faults, one line each.

    Args:
      page: the HTML file.
      width: of the screen, in CSS pixels.
      dark: whether the reader prefers dark pages.
      picture: the PNG to write; the HTML file of its frame is written beside it.
    """
    frame = picture.with_suffix(".html")

    def browse(height: int, *mode: str) -> str:
        frame.write_text(FRAME.format(width=width, height=height, page=html.escape(page.resolve().as_uri())))
        theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        size = f"--window-size={width},{height}"
        command = [chromium(), *flags, *theme, size, "--virtual-time-budget=10000", *mode, frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    match = re.search(r"<pre>(\{.*?\})</pre>", browse(1000, "--dump-dom"))
    if match is None:
        return ["did not open"]
    result = json.loads(html.unescape(match.group(1)))
    browse(min(result["height"], MAX_HEIGHT), f"--screenshot={picture}")
    return [str(fault) for fault in result["faults"]]


def main() -> None:
    """Checks every page in all variants, and prints the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    pages = parser.parse_args().pages
    folder = Path(tempfile.mkdtemp(prefix="look"))
    any_faults = False
    for page, (screen, width), dark in itertools.product(pages, WIDTHS.items(), (False, True)):
        if not page.is_file():
            sys.exit(f"{page} is not a file")
        theme = "dark" if dark else "light"
        picture = folder / f"{page.stem}_{screen}_{theme}.png"
        faults = look(page, width, dark, picture)
        print(f"{page}, {screen}, {theme}: {'; '.join(faults) or 'no faults'} ({picture})", flush=True)
        any_faults = any_faults or bool(faults)
    sys.exit(any_faults)


if __name__ == "__main__":
    main()
