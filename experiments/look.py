"""Opens HTML pages in headless Chromium as a reader would: at desktop and phone width, in light and dark.

python experiments/look.py runs/digits/report.html

Saves a picture of each beside the page's own name in a new folder, to be looked at, and finds by itself what no reader
should meet: a page wider than the screen, a picture that does not load, text too faint on what is behind it (WCAG 2.1,
contrast below 4.5 to 1), and anything that the page fetches from elsewhere. Exit status 1 if there is such a thing.
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
TALLEST = 12_000
# In a frame, since a window of Chromium's has at least 500 pixels.
FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe src="{page}" width="{width}" height="{height}"></iframe><pre></pre><script>
const frame = document.querySelector("iframe");
const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
const opaque = colour => (numbers(colour)[3] ?? 1) > 0;
const light = colour => numbers(colour).slice(0, 3).map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
function contrast(one, other) {{
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}}
frame.onload = () => {{
  const page = frame.contentDocument, style = e => frame.contentWindow.getComputedStyle(e), found = [];
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth) found.push(`${{root.scrollWidth}} pixels wide`);
  for (const image of page.images) if (!image.naturalWidth) found.push(`not loaded: ${{image.src.slice(0, 60)}}`);
  for (const e of page.body.querySelectorAll("*")) {{
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join(" ").trim();
    if (!text || !e.getClientRects().length) continue;
    let behind = e;
    while (behind && !opaque(style(behind).backgroundColor)) behind = behind.parentElement;
    const ratio = contrast(style(e).color, behind ? style(behind).backgroundColor : "rgb(255, 255, 255)");
    if (ratio < 4.5) found.push(`contrast ${{ratio.toFixed(1)}}: ${{text.slice(0, 40)}}`);
  }}
  for (const entry of frame.contentWindow.performance.getEntriesByType("resource"))
    if (!entry.name.startsWith("data:")) found.push(`fetched: ${{entry.name}}`);
  document.querySelector("pre").textContent = JSON.stringify({{height: root.scrollHeight, found: [...new Set(found)]}});
}};
</script>"""


def chromium() -> str:
    """The browser's path.

    Raises:
      SystemExit: if there is none.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    raise SystemExit(f"none of {', '.join(names)} is installed; install Chromium to look at pages")


def look(page: Path, width: int, dark: bool, picture: Path) -> list[str]:
    """Opens a page, saves a picture of all of it, and says what is wrong with it, a line each.

    Args:
      page: the HTML file.
      width: of the screen, in CSS pixels.
      dark: whether the reader prefers dark pages.
      picture: the PNG to write; its frame, an HTML file, stands beside it.
    """
    frame = picture.with_suffix(".html")

    def browse(height: int, *ask: str) -> str:
        frame.write_text(FRAME.format(width=width, height=height, page=html.escape(page.resolve().as_uri())))
        theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        size = f"--window-size={width},{height}"
        command = [chromium(), *flags, *theme, size, "--virtual-time-budget=10000", *ask, frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    said = re.search(r"<pre>(\{.*?\})</pre>", browse(1000, "--dump-dom"))
    if said is None:
        return ["did not open"]
    seen = json.loads(html.unescape(said.group(1)))
    browse(min(seen["height"], TALLEST), f"--screenshot={picture}")
    return [str(line) for line in seen["found"]]


def main() -> None:
    """Looks at every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    pages = parser.parse_args().pages
    folder = Path(tempfile.mkdtemp(prefix="look"))
    wrong = False
    for page, (screen, width), dark in itertools.product(pages, WIDTHS.items(), (False, True)):
        if not page.is_file():
            sys.exit(f"{page} is not a file")
        theme = "dark" if dark else "light"
        picture = folder / f"{page.stem}_{screen}_{theme}.png"
        found = look(page, width, dark, picture)
        print(f"{page}, {screen}, {theme}: {'; '.join(found) or 'nothing wrong'} ({picture})", flush=True)
        wrong = wrong or bool(found)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
