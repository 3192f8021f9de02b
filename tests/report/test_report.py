"""The report: every section of what an evaluation holds, no markup from outside, one small page that a browser shows without errors."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from page_structure import Structure
from small_evaluations import TRAINING, Texts, change, copied, write_evaluation

from epns_pyro.cli import main
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures.style import SMALL, thinned
from epns_pyro.evaluation.parts import Panel
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.report import svg, write_report
from epns_pyro.report.pages import write_player
from epns_pyro.report.viewers import MAX_CHARACTERS, pack, viewer

COMMON = ["verdicts", "look", "likelihood", "fans", "distances", "two-sample", "pit", "coverage", "spread", "skill", "ranks"]
MODEL = ["latents", "equivariance", "stability", "recalibration", "training", "how"]
SECTIONS = {"particles": [*COMMON, *MODEL], "labels": [*COMMON, "reliability", *MODEL]}
HOSTILE = "</text></script><script>alert('1')</script><img src=x onerror=alert(2)>{{ 7*7 }}$\\frac{${% raw %}<!--\u2028&amp;\"'`"


KINDS = pytest.mark.parametrize("kind", ["particles", "labels"])
BROWSER = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


@pytest.fixture(scope="module")
def pages(evaluations: dict[str, Path]) -> dict[str, Path]:
    return {kind: write_report(folder, folder.parent / "report.html", TRAINING) for kind, folder in evaluations.items()}


@KINDS
def test_every_section_is_there_in_order(kind: str, pages: dict[str, Path]) -> None:
    assert Structure(pages[kind].read_text()).found["section"] == SECTIONS[kind]


@KINDS
def test_every_figure_has_panels_a_caption_and_words_for_those_who_cannot_see_it(kind: str, pages: dict[str, Path]) -> None:
    figures = re.findall(r"<figure>.*?</figure>", pages[kind].read_text(), re.DOTALL)
    assert len(figures) > 14
    for figure in figures:
        assert "<svg" in figure
        assert len(re.search(r'role="img" aria-label="([^"]+)"', figure)[1]) > 25
        assert len(re.search(r"<figcaption>(.+)</figcaption>", figure)[1]) > 15


@KINDS
def test_ids_are_unique_and_links_lead_somewhere(kind: str, pages: dict[str, Path]) -> None:
    text = pages[kind].read_text()
    ids = re.findall(r'<[^>]* id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    targets = {link.removeprefix("#") for link in Structure(text).found["href"]}
    assert targets <= set(ids)


@KINDS
def test_the_page_stands_alone_and_its_policy_names_its_only_script(kind: str, pages: dict[str, Path]) -> None:
    text = pages[kind].read_text()
    assert pages[kind].stat().st_size < 10e6
    found = Structure(text)
    assert found.found["src"] == []
    assert all(link.startswith("#") for link in found.found["href"])
    assert re.findall(r"https?://(?!www\.w3\.org)\S*", text) == []
    (script,) = found.scripts
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_the_same_evaluation_gives_the_same_page(evaluations: dict[str, Path], pages: dict[str, Path], tmp_path: Path) -> None:
    again = write_report(evaluations["particles"], tmp_path / "again.html", TRAINING)
    assert again.read_bytes() == pages["particles"].read_bytes()


@KINDS
def test_no_text_becomes_markup(kind: str, pages: dict[str, Path], tmp_path: Path) -> None:
    """A page full of hostile text has exactly the tags, and the script, of a page full of harmless text."""
    folder = write_evaluation(tmp_path, kind, texts=Texts.all(HOSTILE))
    text = write_report(folder, tmp_path / "hostile.html", TRAINING).read_text()
    harmless, hostile = Structure(pages[kind].read_text()), Structure(text)
    assert len(hostile.tags) > 1000
    assert hostile.tags == harmless.tags
    assert hostile.scripts == harmless.scripts
    assert "{{ 7*7 }}" in text
    assert "<!--" not in text


FORECASTS = {"pit", "coverage", "spread", "skill", "ranks", "reliability"}


@pytest.mark.parametrize(
    ("kind", "missing", "sections"),
    [
        (
            "particles",
            ["fans.nc", "stability.nc", "likelihood", "two_sample", "headline"],
            {"fans", "stability", "likelihood", "two-sample"},
        ),
        ("labels", ["diagnostics.nc", "examples.nc", "latents", "equivariance", "run"], {*FORECASTS, "look", "latents", "equivariance"}),
        (
            "particles",
            ["same_init", "verdicts", "recalibration", "recalibration.nc", "training"],
            {"distances", "recalibration", "training"},
        ),
    ],
)
def test_what_is_missing_is_left_out(
    kind: str, missing: list[str], sections: set[str], evaluations: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(evaluations[kind], tmp_path)
    for name in (name for name in missing if name.endswith(".nc")):
        (folder / name).unlink()
    change(folder, **dict.fromkeys(missing))
    page = write_report(folder, tmp_path / "report.html", [] if "training" in missing else TRAINING)
    assert Structure(page.read_text()).found["section"] == [s for s in SECTIONS[kind] if s not in sections]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run), "no such run"),
        (lambda run: (run / "evaluation" / "metrics.json").unlink(), "no evaluation found: make it with epns-pyro evaluate"),
        (lambda run: (run / "evaluation" / "metrics.json").write_text("{"), "not valid JSON"),
        (lambda run: (run / "evaluation" / "metrics.json").write_text('{"format": "x"}'), "expected 'epns-pyro evaluation' of version 1"),
        (lambda run: (run / "evaluation" / "fans.nc").write_bytes(b"\x89HDF" + b"x" * 99), "not a readable netCDF file"),
        (
            lambda run: shutil.copy(run / "evaluation" / "stability.nc", run / "evaluation" / "fans.nc"),
            "fans.nc: expected value with the dims",
        ),
    ],
)
def test_a_damaged_evaluation_is_refused_in_one_line(damage, words: str, evaluations: dict[str, Path], tmp_path: Path) -> None:
    copied(evaluations["particles"], tmp_path / "run")
    damage(tmp_path / "run")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "report.html").exists()


# -- pictures ----------------------------------------------------------------------------------------------------------------


def test_values_of_the_players_come_back_as_they_were() -> None:
    values = np.array([[1.5, -2.0, np.nan]])
    unpacked = np.frombuffer(zlib.decompress(base64.b64decode(pack(values, "<f4"))), "<f4")
    np.testing.assert_array_equal(unpacked, np.array([1.5, -2.0, 1e9], np.float32))


def test_long_films_are_thinned_until_they_fit() -> None:
    cell = np.random.default_rng(0).integers(0, 65, (4, 3, 61, 72, 72)).astype(np.uint16)  # noise does not compress: the worst case
    data = xr.Dataset(
        {"cell": (("source", "trajectory", "time", "y", "x"), cell)}, coords={"source": list("abcd"), "time": np.arange(61.0)}
    )
    show = viewer(Evaluated(EvaluationRecord(), files={"examples": data}))
    assert len(show.data["values"]) <= MAX_CHARACTERS
    assert show.data["shape"][2] == len(show.data["time"]) < 61
    assert show.data["time"][0] == 0


@pytest.mark.parametrize("name", ["body", "particle"])
def test_orbits_are_drawn_whatever_the_axis_of_the_bodies_is_called(name: str) -> None:
    position = np.random.default_rng(0).normal(size=(2, 3, 5, 6, 2)).astype(np.float32)
    data = xr.Dataset(
        {"position": (("source", "trajectory", "time", name, "space"), position), "mass": (("trajectory", name), np.ones((3, 6)))},
        coords={"source": ["truth", "member 1"], "time": np.arange(5.0)},
    )
    show = viewer(Evaluated(EvaluationRecord(), files={"examples": data}))
    assert show.data["shape"] == [2, 3, 5, 6, 3]
    unpacked = np.frombuffer(zlib.decompress(base64.b64decode(show.data["values"])), "<f4").reshape(2, 3, 5, 6, 3)
    np.testing.assert_array_equal(unpacked[..., :2], position)


def test_a_panel_has_the_colours_of_the_page_and_no_markup_from_labels() -> None:
    drawn = svg.draw(Panel(SMALL, lambda axes: axes.plot([0, 1], label="x"), title="a<b>$x$ & c", x="</svg>"))
    assert "var(--axis)" in drawn
    assert "#0" not in re.sub(r"#f[0-9a-f]{8}-", "", drawn)
    assert "a&lt;b&gt;$x$ &amp; c" in drawn
    assert drawn.count("</svg>") == 1


def test_thinning_keeps_both_ends() -> None:
    assert list(thinned(5, 9)) == [0, 1, 2, 3, 4]
    assert list(thinned(100, 4)) == [0, 33, 66, 99]


# -- a browser ---------------------------------------------------------------------------------------------------------------

PROBE = """<script>
const problems = [];
addEventListener("error", (e) => problems.push(e.message));
addEventListener("unhandledrejection", (e) => problems.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => problems.push(e.violatedDirective + " " + e.blockedURI));
for (const level of ["error", "warn"]) console[level] = (...words) => problems.push(words.join(" "));
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement, canvas = document.querySelector("canvas"), all = (what) => [...document.querySelectorAll(what)];
  const pixels = () => new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const box = (e) => e.getBoundingClientRect(), before = pixels(), found = { colours: new Set(before).size };
  found.drawn = before.reduce((sum, pixel) => (31 * sum + pixel) >>> 0, 7);
  press("ArrowRight"); found.moved = pixels().some((pixel, i) => pixel !== before[i]);
  press(" "); found.playing = document.getElementById("play").textContent; press(" ");
  Object.assign(found, {
    problems, width: innerWidth, overflow: root.scrollWidth - root.clientWidth, figures: all("figure").length,
    empty: all("figure svg").filter((e) => box(e).width < 20 || box(e).height < 15).length,
    outside: all("figure svg, canvas, .badge, h2").filter((e) => box(e).right > innerWidth).length,
    ink: getComputedStyle(document.body).color,
    line: getComputedStyle(document.querySelector("figure svg path[style*=stroke]") || root).stroke,
  });
  parent.postMessage(JSON.stringify(found), "*");
}, 400));
</script>"""
# A window of a headless browser is never narrower than 500 pixels, a frame in it may be.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="page.html" style="border:0;width:{width}px;height:1400px"></iframe>
<script>addEventListener("message", (e) => {{ document.body.dataset.probe = e.data; }});</script>"""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --virtual-time-budget=5000 --dump-dom"
)


def browse(page: Path, folder: Path, width: int, *, dark: bool = False) -> dict:
    """Open a page in a browser with a fresh profile and say what it found; what it looks like goes to folder/WIDTH.png."""
    folder.mkdir(exist_ok=True)
    (folder / "page.html").write_text(page.read_text().replace("<head>", "<head>" + PROBE, 1))  # the policy binds what follows it
    (folder / "frame.html").write_text(FRAME.format(width=width))
    options = [f"--window-size={max(width, 500)},1400", f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / f'{width}.png'}"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = ["chromium", *FLAGS.split(), *options, f"file://{folder / 'frame.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@BROWSER
@KINDS
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_browser_shows_the_page_without_errors(kind: str, width: int, dark: bool, pages: dict[str, Path], tmp_path: Path) -> None:
    found = browse(pages[kind], tmp_path / "seen", width, dark=dark)
    assert found["problems"] == []
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["outside"] == 0
    assert found["figures"] == pages[kind].read_text().count("<figure>")
    assert found["empty"] == 0
    assert found["colours"] >= 4
    assert found["moved"]
    assert found["playing"] == "Pause"
    light = [int(v) > 128 for v in re.findall(r"\d+", found["ink"])]
    assert all(light) if dark else not any(light)
    assert found["line"] != "none"
    assert (tmp_path / "seen" / f"{width}.png").stat().st_size > 20_000


@BROWSER
@pytest.mark.parametrize("space", [2, 3])
def test_a_film_of_bodies_is_the_same_with_one_that_is_always_absent(space: int, tmp_path: Path) -> None:
    walk = np.random.default_rng(0).normal(size=(3, 1, 12, 5, space)).cumsum(2)
    walk[..., 4:8, 1, :] = np.nan  # away for a while
    drawn = []
    for bodies in (5, 6):
        position = np.concatenate([walk, np.full((3, 1, 12, bodies - 5, space), np.nan)], 3)
        data = xr.Dataset(
            {"position": (("source", "trajectory", "time", "body", "space"), position)},
            coords={"source": ["truth", "member 1", "member 2"], "time": np.arange(12.0)},
        )
        page = write_player(data, time_unit="s", title="film", out=tmp_path / f"{bodies}.html")
        drawn.append(browse(page, tmp_path / f"seen{bodies}", 1280))
    assert drawn[0]["colours"] >= 4
    assert drawn[0]["drawn"] == drawn[1]["drawn"]


@BROWSER
def test_a_script_that_slipped_in_would_not_run(pages: dict[str, Path], tmp_path: Path) -> None:
    """The second lock: had escaping failed, the policy of the page would still stop the scripts."""
    injected = "<h1><script>document.title = 1</script><img src=data: onerror='document.title = 2'>"
    (tmp_path / "open.html").write_text(pages["particles"].read_text().replace("<h1>", injected, 1))
    found = browse(tmp_path / "open.html", tmp_path / "seen", 1280)
    assert sum("script-src" in problem for problem in found["problems"]) == 2
