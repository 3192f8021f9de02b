"""Check pages with axe-core in Chromium: `python docs/accessibility.py FOLDER...`. Prints what it finds, and exits with 1 if anything is.

Every page is shown in a frame of the width of a desk and of a telephone; pages that lie side by side are checked by one browser.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

WIDTHS = (1280, 400)  # pixels
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync --allow-file-access-from-files "
    "--run-all-compositor-stages-before-draw --virtual-time-budget=3600000 --dump-dom"
)
NOT_OURS = ("search.html", "genindex.html", "py-modindex.html")  # made by the theme
HARNESS = """<!doctype html><title>pages</title><script id="axe" type="text/plain">%(axe)s</script><script>
const axe = document.getElementById("axe").textContent, found = [];
async function check(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = page;
  const shown = new Promise((done) => frame.addEventListener("load", done));
  document.body.append(frame);
  await shown;
  const script = frame.contentDocument.createElement("script");
  script.textContent = axe;
  frame.contentDocument.head.append(script);
  const result = await frame.contentWindow.axe.run(frame.contentDocument, {resultTypes: ["violations"]});
  for (const v of result.violations) found.push({page, width, rule: v.id, words: v.help, nodes: v.nodes.map((n) => n.html.slice(0, 120))});
  frame.remove();
}
addEventListener("load", async () => {
  for (const page of %(pages)s) for (const width of %(widths)s) {
    try { await check(page, width); } catch (error) { found.push({page, width, rule: "not checked", words: String(error), nodes: []}); }
  }
  document.head.remove();  // with this text in it
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
</script><body></body>"""


def problems(site: Path) -> Iterator[str]:
    """Say what axe-core finds on the pages of a folder, a line each."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8").replace("</script>", r"<\/script>")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(site, Path(temporary) / "site"))
        pages = [str(page.relative_to(copy)) for page in sorted(copy.rglob("*.html")) if page.name not in NOT_OURS]
        for page in pages:  # a policy against foreign scripts would keep axe-core out
            text = (copy / page).read_text(encoding="utf-8")
            (copy / page).write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text), encoding="utf-8")
        harness = copy / "check-all-pages.html"
        harness.write_text(HARNESS % {"axe": axe, "pages": json.dumps(pages), "widths": json.dumps(WIDTHS)}, encoding="utf-8")
        command = ["chromium", *FLAGS.split(), f"--user-data-dir={temporary}/profile", harness.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout
    result = re.search("FOUND(.*)END", shown, re.DOTALL)
    if not result:
        raise SystemExit("Chromium showed no result")
    for one in json.loads(html.unescape(result[1])):
        where = f" in {len(one['nodes'])} places, first {' '.join(one['nodes'][0].split())}" if one["nodes"] else ""
        yield f"{one['page']} at {one['width']} px: {one['rule']}: {one['words']}{where}"


if __name__ == "__main__":
    if shutil.which("chromium") is None:
        sys.stdout.write("accessibility: not checked, there is no chromium\n")
        sys.exit()
    found = [problem for site in sys.argv[1:] for problem in problems(Path(site).resolve())]
    sys.stdout.write("\n".join(found or ["accessibility: axe-core finds nothing"]) + "\n")
    sys.exit(bool(found))
