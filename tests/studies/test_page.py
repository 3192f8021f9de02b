"""The page of a study and the command: every claim has a line, nothing from outside becomes markup, a browser shows it at any width."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_study
from click.testing import CliRunner

from epns_pyro import cluster
from epns_pyro.cli import main
from epns_pyro.evaluation.parts import Judged, Page, Section, Text
from epns_pyro.report import write_page
from epns_pyro.studies import Plan, work
from epns_pyro.studies.estimate import Clock, Cost, words
from epns_pyro.studies.measures import collect
from epns_pyro.studies.page import command, make_page

BROWSER = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


def reproduce(*arguments: str, out: Path, models: str = "epns,gp-ode", seeds: int = 1):
    options = ["--models", models, "--seeds", str(seeds), "--jobs", "1", "--out", str(out)]
    return CliRunner().invoke(main, ["reproduce", "celestial", *options, *small_study.options(), *arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study made by the command. Do not write to it."""
    out = tmp_path_factory.mktemp("command") / "study"
    result = reproduce(out=out)
    assert result.exit_code == 0, result.output
    assert "claims that were tried with 1 seed" in result.stdout
    return out


def plan_of(out: Path) -> Plan:
    return small_study.plan(out, seeds=1)


def test_the_page_has_a_line_per_claim_and_says_how_it_was_made(done: Path) -> None:
    plan = plan_of(done)
    page, text = make_page(plan, collect(plan, {})), plan.page.read_text()
    claims = next(section for section in page.sections if section.key == "claims")
    judged = [item for item in claims.items if isinstance(item, Judged)]
    assert [one.subject for one in judged] == ["EPNS is equivariant up to rounding errors", "EPNS has a higher likelihood than GP-ODE"]
    assert judged[0].word == "supported"
    assert judged[1].word == "too few seeds to say"
    assert "claims were not measured" in text
    for said in (
        "training.steps=4",
        "Left out by --models: PNS-GNN",
        "14 trajectories of 10 steps",
        "epns-pyro reproduce celestial --preset quick",
    ):
        assert said in text
    assert [s.key for s in page.sections] == ["claims", "published", "distances", "long", "few", "how"]


def test_the_same_command_does_nothing_again_and_says_the_same(done: Path) -> None:
    before = (done / "celestial.html").read_text()
    result = reproduce(out=done)
    assert result.exit_code == 0
    assert (done / "celestial.html").read_text() == before


def test_the_command_on_the_page_is_the_command(done: Path) -> None:
    plan = plan_of(done)
    _, *arguments = command(plan).split()
    result = CliRunner().invoke(main, [*arguments, "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert "page:" in result.stdout


def test_other_settings_are_refused_with_a_way_out(done: Path) -> None:
    result = reproduce("--set", "training.steps=5", out=done)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: .*training.steps is 4 there, 5 here.*--out, or remove .* to start again\n", result.stderr)


def test_a_dry_run_lists_the_runs_and_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "study"
    result = reproduce("--dry-run", out=out, seeds=2)
    assert result.exit_code == 0, result.output
    how_long = r"(less than a minute|about \d+ min)"  # timed on this computer, which may be busy
    assert re.search(rf"^epns +10 +2 +4 +{how_long}$", result.stdout, flags=re.MULTILINE), result.stdout
    assert re.search(rf"^8 runs, 0 of them finished; 1 at a time; {how_long};", result.stdout, flags=re.MULTILINE), result.stdout
    assert not out.exists()


def test_an_interrupt_names_the_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, judged = tmp_path / "study", work.judge

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "judge", interrupted)
    result = reproduce(out=out)
    assert result.exit_code == 130
    assert "Continue with:\n  epns-pyro reproduce celestial" in result.stdout
    assert "0 of 5 runs are finished" in (out / "celestial.html").read_text()
    monkeypatch.setattr(work, "judge", judged)
    assert reproduce(out=out).exit_code == 0
    assert "are finished" not in (out / "celestial.html").read_text()


def test_an_interrupt_names_the_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        size = 1
        map = staticmethod(map)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "connect", lambda address: contextlib.nullcontext(Here()))
    monkeypatch.setattr(work, "run", interrupted)
    result = reproduce("--cluster", "slurm:4", out=tmp_path / "study")
    assert result.exit_code == 130
    assert re.search(r"Continue with:\n  epns-pyro reproduce celestial .* --cluster slurm:4\n", result.stdout)


@pytest.mark.slow
def test_killed_half_way_and_run_again_gives_the_same_page(done: Path, tmp_path: Path) -> None:
    """Two runs at a time are killed without a warning after the first result; the same command goes on."""
    out = tmp_path / "study"
    command = [sys.executable, "-m", "epns_pyro.cli", "reproduce", "celestial", "--models", "epns,gp-ode", "--seeds", "1", "--jobs", "2"]
    command += ["--out", str(out), *small_study.options()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("runs/epns/**/study.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not (out / "celestial.html").exists()
    for _ in range(60):  # what it started notices that it is gone
        again = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "another process is working" not in again.stderr:
            break
        time.sleep(2)
    assert again.returncode == 0, again.stderr
    for name in ("celestial.html", "celestial.csv"):
        ours, theirs = (_without_time((folder / name).read_text().replace(str(folder), "")) for folder in (out, done))
        assert ours == theirs


def _without_time(text: str) -> str:
    """Blank the minutes of training, which are different each time, in the table."""
    rows = list(csv.reader(io.StringIO(text)))
    keep = [i for i, name in enumerate(rows[0]) if not name.startswith("minutes")]
    return "\n".join(",".join(row[i] for i in keep) for row in rows) if text.startswith("model,") else text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce", "celestail"], "unknown study 'celestail': did you mean 'celestial'"),
        (["reproduce", "cellular", "--models", "gp-ode"], "an image of cells has none"),
        (["reproduce", "celestial", "--preset", "fast"], "unknown preset 'fast'"),
        (["reproduce", "celestial", "--set", "training.stps=3"], "did you mean 'steps'"),
        (["reproduce", "celestial", "--set", "seed=3"], "have the seeds 0 to 2: choose how many with --seeds"),
        (["reproduce", "celestial", "--sizes", "10,x"], "expected whole numbers above 0, separated by commas, found 'x'"),
        (["reproduce", "celestial", "--out", "/dev/null/x"], "a file is in the way"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "last.ckpt"))

    monkeypatch.setattr(work, "contender", full)
    result = reproduce(out=tmp_path / "study")
    assert result.exit_code == 2
    assert re.search(r"^error: .*last.ckpt: No space left on device$", result.stderr, flags=re.MULTILINE)


def test_a_study_of_ones_own_is_a_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(
        "title: Mine\nabout: One model.\nfamily: nbody\npresets: {quick: {about: tiny, multi_step: 2}}\n"
        "models:\n  one: {title: One, about: the default, group: project}\n"
        "  truth: {title: true process, about: itself, group: reference, reference: truth}\n"
    )
    arguments = ["reproduce", str(own), "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out"), *small_study.options()]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "mine.html").is_file()
    own.write_text("- models\n")
    assert "expected the keys of a study, found list" in CliRunner().invoke(main, arguments).stderr
    own.write_text("models: {a: {like: b}}\n")
    assert "title: field required" in CliRunner().invoke(main, arguments).stderr


def test_text_of_a_study_is_no_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    page = Page(bad, bad, bad, bad, [Section("key", bad, bad, [Text(bad), Judged(bad, bad, bad, "good")])])
    assert bad not in write_page(page, tmp_path / "page.html").read_text()


def test_the_clock_runs_from_the_estimates(tmp_path: Path) -> None:
    plan = small_study.plan(tmp_path, seeds=1)
    clock = Clock(plan, {job.name: Cost(60.0, 30.0, 30.0) for job in plan.jobs}, jobs=2)
    few = sum(not job.whole for job in plan.jobs)
    assert clock.total == 120 * (len(plan.jobs) - few) + 90 * few
    assert clock.left() == pytest.approx(clock.total / 2)
    clock.see(work.Event(0, "training", 1, 2))
    assert clock.done == 30
    clock.see(work.Event(0, "finished", 1, 1))
    assert clock.done == 120
    assert words(30) == "less than a minute"
    assert words(3600) == "about 60 min"
    assert words(9000) == "about 2 h 30 min"


PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const all = (s) => [...document.querySelectorAll(s)], box = (e) => e.getBoundingClientRect(), root = document.documentElement;
  const outside = all("figure svg, .badge, h2").filter((e) => box(e).right > innerWidth), drawn = all("figure svg");
  const found = [root.scrollWidth - root.clientWidth, drawn.length, drawn.filter((e) => box(e).width < 20).length, outside.length];
  parent.postMessage(JSON.stringify(found), "*");
}, 300));</script>"""


@BROWSER
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_at_any_width(width: int, done: Path, tmp_path: Path) -> None:
    text = plan_of(done).page.read_text()
    text = re.sub(r"script-src 'none'", "script-src 'unsafe-inline'", text)
    (tmp_path / "page.html").write_text(text.replace("<head>", "<head>" + PROBE, 1))
    (tmp_path / "frame.html").write_text(
        f'<body style="margin:0"><iframe src="page.html" style="border:0;width:{width}px;height:1400px"></iframe>'
        '<script>addEventListener("message", (e) => { document.body.dataset.probe = e.data; });</script>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000", "--dump-dom"]
    address = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},1400", f"file://{tmp_path / 'frame.html'}"]
    done_ = subprocess.run(["chromium", *options, *address], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-probe="\[(.*?)\]"', done_.stdout)
    assert found, done_.stderr[-2000:]
    overflow, figures, empty, outside = map(int, found[1].split(","))
    assert overflow <= 0
    assert figures == text.count("<svg")
    assert figures > 4
    assert (empty, outside) == (0, 0)
