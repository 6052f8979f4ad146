"""Every code block of README and of every page runs, page by page; those that cannot are named, with the reason, and
counted. Exits with 77 where the packages of requirements/docs.txt are missing. usage: test_blocks.py [PAGE.md...]"""
import concurrent.futures
import os
import pathlib
import sys
import time

SOURCE = pathlib.Path(os.environ["DPI_SRC"])
sys.path.append(str(SOURCE / ".deps/docs"))
if os.environ.get("DPI_SANITIZE"):
    print("skipped: the sanitizer is not in the interpreter, nor in programs built from outside")
    sys.exit(77)
try:
    from runner import run_page
except ImportError as lacking:
    print(f"skipped: {lacking} (requirements/docs.txt)")
    sys.exit(77)


def timed(page: pathlib.Path):
    began = time.monotonic()
    return run_page(page), time.monotonic() - began


def main() -> int:
    pages = [pathlib.Path(p) for p in sys.argv[1:]] or [SOURCE / "README.md", *sorted((SOURCE / "docs").glob("*.md"))]
    for page in (SOURCE / "docs").glob("*.rst"):
        if any(line.rstrip().endswith("::") and not line.startswith("..") for line in page.read_text().splitlines()):
            print(f"{page.name}: a literal block; code belongs into Markdown pages, where it runs")
            return 1
    ran, skipped, failed = 0, [], []
    with concurrent.futures.ThreadPoolExecutor(2) as two:
        for page, (report, seconds) in zip(pages, two.map(timed, pages)):
            print(f"{page.name}: {report.ran} blocks ran in {seconds:.0f} s, {len(report.skipped)} did not")
            for text in report.slow:
                print("  slow:", text)
            ran, skipped, failed = ran + report.ran, skipped + report.skipped, failed + report.failed
    for text in skipped:
        print("not run:", text)
    for text in failed:
        print("FAILED:", text)
    print(f"{ran} blocks ran, {len(skipped)} did not, {len(failed)} failed")
    return bool(failed) or not ran


sys.exit(main())
