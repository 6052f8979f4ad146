"""The report: one page that needs nothing else, with every figure that its results ask for. Where Chromium is, it is
opened at phone and desktop width, light and dark: no word on the console, nothing wider than the page, no text cut off.
Exits with 77 where matplotlib is missing, after checking that the program says so."""
import html
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.dom.minidom

DPINFER, SRC = os.environ["DPINFER"], pathlib.Path(os.environ["DPI_SRC"])
PYTHON = os.environ.get("DPI_PYTHON", sys.executable)
env = {**os.environ, "DPINFER_PYTHON": PYTHON, "MPLCONFIGDIR": tempfile.gettempdir()}
packages = os.pathsep.join(filter(None, [str(SRC / ".deps" / "report"), os.environ.get("PYTHONPATH")]))
failures = []


def run(*words, code=0, says="", packages_too=True):
    done = subprocess.run([DPINFER, *map(str, words)], capture_output=True, text=True, timeout=240, cwd=work,
                          env={**env, **({"PYTHONPATH": packages} if packages_too else {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"})})
    text = done.stdout + done.stderr
    if done.returncode != code or says not in text or "Traceback" in text:
        failures.append(f"dpinfer {' '.join(map(str, words))}: exit code {done.returncode}\n    {text.strip()[-1500:]}")
    return text


def check(good, text):
    if not good:
        failures.append(text)


class Reader(html.parser.HTMLParser):
    """Ids, and what the page refers to."""

    def __init__(self):
        super().__init__()
        self.ids, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            elif key in ("src", "href", "xlink:href"):
                self.links.append(value)
            self.links += ["#" + name for name in re.findall(r"url\(#([^)]*)\)", value or "")]


def look_at(page, titles):
    text = page.read_text()
    reader = Reader()
    reader.feed(text)
    check(not {"script", "iframe", "img", "object"} & set(reader.tags), f"{page.name}: {set(reader.tags)}")
    check(all(link.startswith(("#", "data:")) for link in reader.links), f"{page.name} loads {reader.links}")
    check({link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids), f"{page.name}: a reference leads nowhere")
    check(len(reader.ids) == len(set(reader.ids)), f"{page.name}: an id is there twice")
    check("@import" not in text and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text), f"{page.name} names an address")
    found = [html.unescape(t) for t in re.findall(r"<h2>([^<]*)</h2>", text)]
    check(found == titles, f"{page.name} shows {found}")
    figures = re.findall(r"<svg .*?</svg>", text, re.S)
    drawn = [t for t in titles if t not in ("Bad rows", "Machine and command")]
    check(len(figures) == 2 * len(drawn), f"{page.name}: {len(figures)} figures")
    for figure in figures:
        xml.dom.minidom.parseString(figure)


PROBE = """<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const bad = [];
  if (document.documentElement.scrollWidth > innerWidth) bad.push('wider than ' + innerWidth);
  let figures = 0;
  document.querySelectorAll('svg').forEach(s => {
    const box = s.getBoundingClientRect();
    if (!box.width) return;
    figures++;
    s.querySelectorAll('text').forEach(t => {
      const b = t.getBoundingClientRect();
      if (b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1)
        bad.push('cut off: ' + t.textContent);
    });
  });
  parent.postMessage('PROBED ' + innerWidth + ' ' + figures + ' ' + getComputedStyle(document.body).backgroundColor + ' ' + JSON.stringify(bad), '*');
});
</script></head>"""


# A window is at least 500 pixels wide: a frame in it is as wide as it is told.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><title>-</title>
<script>addEventListener('message', e => document.title = e.data)</script><iframe src="%s" width="%d" height="900" style="border:0"></iframe>"""


def open_in(browser, page, figures):
    probed, frame = page.with_name("probed-" + page.name), page.with_name("frame-" + page.name)
    probed.write_text(page.read_text().replace("</head>", PROBE, 1))
    backgrounds = set()
    for width in (375, 1200):
        frame.write_text(FRAME % (probed.name, width))
        for scheme in (0, 1): # dark, light
            done = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
                                   f"--user-data-dir={work / 'browser'}", f"--blink-settings=preferredColorScheme={scheme}",
                                   "--window-size=1300,1000", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=240)
            console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
            found = re.search(r"<title>PROBED (\d+) (\d+) (rgb\([^)]*\)) (.*?)</title>", done.stdout, re.S)
            check(not console, f"{page.name}: {console[:3]}")
            check(found and int(found[1]) == width and int(found[2]) == figures and found[4] == "[]",
                  f"{page.name} at {width}: {found[0] if found else done.stderr[-300:]}")
            backgrounds.add(found[3] if found else None)
    check(len(backgrounds) == 2, f"{page.name}: light and dark look alike: {backgrounds}")


with tempfile.TemporaryDirectory(prefix="dpinfer-report-", ignore_cleanup_errors=True) as folder:
    work = pathlib.Path(folder)
    run("report", code=2, says="RESULTS.json")
    run("report", "a.json", "b.json", "-o", "x", code=2, says="one word too many")
    run("report", "a.json", "--frob", code=2, says="--frob")
    lacking = subprocess.run([PYTHON, "-c", "import matplotlib"], capture_output=True, env={**env, "PYTHONPATH": packages}).returncode
    bare = subprocess.run([PYTHON, "-c", "import matplotlib"], capture_output=True, env={**env, "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}).returncode
    if bare:
        run("report", "a.json", "-o", "x.html", code=2, says="pip install", packages_too=False)
    if lacking:
        print(*failures, "matplotlib is missing: requirements/report.txt", sep="\n")
        sys.exit(1 if failures else 77)

    (work / "m <&>.sim").write_text("input x float32 N 8\noutput y float32 N 4\nfixed_us 300\nrow_us 10\n")
    model = "m <&>.sim"
    run("run", model, "--input", "random:8:float32:40000", "--devices", "sim:0*12", "--batch", "16", "--json", "run.json")
    results = json.loads((work / "run.json").read_text())
    check(sum(d["rows"] for d in results["devices"]) >= 40000 and results["command"][:3] == ["dpinfer", "run", model], "run.json")
    check(0 < results["slice_ms"]["p50"] <= results["slice_ms"]["p90"] <= results["slice_ms"]["p99"], f"{results['slice_ms']}")
    check(results["timeline"][0]["s"] == 0 and sum(d[0] for d in results["timeline"][-1]["devices"]) == 40000, "the timeline lacks rows")
    run("report", "run.json", "-o", "run.html")
    over_time = ["Throughput over time", "Where the devices' time went", "Latency"]
    look_at(work / "run.html", [*over_time, "Machine and command"])
    results["bad_rows"] = [{"row": i, "reason": f"<b>killed</b> & {'x' * 300}"} for i in range(1000)]
    results["bad_row_count"] = 5000
    (work / "bad.json").write_text(json.dumps(results))
    run("report", "bad.json", "-o", "bad.html")
    look_at(work / "bad.html", [*over_time, "Bad rows", "Machine and command"])
    run("run", model, "--input", "random:8:float32:0", "--json", "none.json")
    run("report", "none.json", "-o", "none.html")
    run("bench", model, "--devices", "sim:0,sim:1", "--batch", "4,16", "--rows", "256", "--repeats", "2", "--seconds", "0.05",
        "--json", "bench.json")
    run("report", "bench.json", "-o", "bench.html")
    titles = ["Modes against the engine alone", "Throughput by batch size", "Latency", "Where the devices' time went"]
    look_at(work / "bench.html", [*titles, "Machine and command"])
    run("bench", model, "--devices", "sim:0*6", "--batch", "4", "--rows", "384", "--mode", "split,shard", "--repeats", "2", "--seconds",
        "0.05", "--scaling", "--json", "curve.json")
    run("report", "curve.json", "-o", "curve.html")
    titles = ["Scaling against ideal", titles[0], *titles[1:]]
    look_at(work / "curve.html", [*titles, "Machine and command"])
    results = json.loads((work / "curve.json").read_text())
    results["scaling"] = [{**point, "devices": 2**i, "ideal_rows_per_s": 0.0} for i, point in enumerate(results["scaling"])]
    (work / "odd.json").write_text(json.dumps(results))
    run("report", "odd.json", "-o", "never.html", code=2, says="odd.json")
    run("bench", model, "--batch", "4", "--rows", "64", "--mode", "shard", "--repeats", "1", "--seconds", "0.05", "--json", "shard.json")
    run("report", "shard.json", "-o", "shard.html")

    for name, text in (("garbage", "{"), ("list", "[]"), ("other", "{}"), ("half", '{"engine_alone": [], "rows": [{}], "model": "x"}')):
        (work / f"{name}.json").write_text(text)
        run("report", f"{name}.json", "-o", "never.html", code=2, says=f"{name}.json")
    run("report", "missing.json", "-o", "never.html", code=2, says="missing.json")
    run("report", "run.json", "-o", "no/where.html", code=1, says="no/where.html")
    check(not list(work.glob("never*")) and not list(work.glob("*.part")), "a failed report left files")

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    for page, figures in (("run", 3), ("bad", 3), ("bench", 4), ("curve", 5)) if browser else ():
        open_in(browser, work / f"{page}.html", figures)
    print("looked at in", browser or "no browser: there is none")

for failure in failures:
    print(failure)
sys.exit(bool(failures))
