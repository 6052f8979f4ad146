"""Runs a page's blocks in order, in a folder of its own that looks like the project's root."""
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time
import uuid
from typing import Dict, List, NamedTuple, Optional

from pages import CODE, Block, PageError, blocks_of, fits

SOURCE, BUILD = pathlib.Path(os.environ["DPI_SRC"]), pathlib.Path(os.environ["DPI_BUILD"])
LIMIT_S, SLOW_S = 300, 5
HERE = pathlib.Path(__file__).resolve().parent


class Ended(NamedTuple):
    code: int
    output: str
    errors: str


class Report:
    """What came of the blocks of one page."""

    def __init__(self) -> None:
        self.ran = 0
        self.skipped: List[str] = []
        self.failed: List[str] = []
        self.slow: List[str] = []  # worth a smaller set-up


def missing() -> Dict[str, str]:
    """What this machine lacks, and how that is said."""
    lacks = {"gpu": "needs a GPU with what drives it: not run in this test"}
    if not (SOURCE / ".deps/torch/torch").is_dir():
        lacks["torch"] = "needs PyTorch, which is not installed (.deps/torch)"
    if not {0, 1} <= os.sched_getaffinity(0):
        lacks["cores"] = "needs the first two CPUs"
    return lacks


def environment(folder: pathlib.Path) -> Dict[str, str]:
    python = pathlib.Path(os.environ["DPI_PYTHON"])
    packages = [SOURCE / "python", *(p for p in (SOURCE / ".deps" / n for n in ("torch", "package", "report")) if p.is_dir())]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(BUILD), str(python.parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DPINFER_LIBRARY": str(BUILD / "libdpinfer.so"),
        "DPINFER_PYTHON": str(python),
        "MPLCONFIGDIR": str(folder / ".matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / ".inductor"),
        "DOCS": str(HERE),
    }  # fmt: skip


class Page:
    """One page's folder, environment and interpreter."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.environment = folder, environment(folder)
        for name in ("models", "data", "examples", "tools", "bench", "include", "src", "tests", "docs"):
            (folder / name).symlink_to(SOURCE / name)
        (folder / "build").symlink_to(BUILD)
        self._python: Optional["subprocess.Popen[str]"] = None

    def close(self) -> None:
        if self._python is not None:
            self._python.stdin.close()
            try:
                self._python.wait(30)
            except subprocess.TimeoutExpired:
                self._python.kill()
                self._python.wait()

    def command(self, words: List[str]) -> Ended:
        try:
            done = subprocess.run(words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, timeout=LIMIT_S)  # fmt: skip
        except subprocess.TimeoutExpired:
            return Ended(-1, "", f"not done within {LIMIT_S} s")
        return Ended(done.returncode, done.stdout, done.stderr)

    def shell(self, code: str) -> Ended:
        return self.command(["bash", "-euo", "pipefail", "-c", code])

    def c(self, block: Block) -> Ended:
        code = block.code
        if block.around is not None:  # its headers stay outside of the function
            lines = code.splitlines()
            headers = [line for line in lines if line.startswith("#include")]
            inside = [line for line in lines if not line.startswith("#include")]
            code = "\n".join([*headers, block.around.replace("BLOCK", "\n".join(inside)), ""])
        source, program = self.folder / f"block{block.line}.c", self.folder / f"block{block.line}"
        source.write_text(code)
        flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE / 'include'}"]
        made = self.command(["cc", *flags, "-o", str(program), str(source), f"-L{BUILD}", f"-Wl,-rpath,{BUILD}", "-ldpinfer", "-lm"])
        return made if made.code else self.command([str(program), *block.arguments])

    def python(self, block: Block) -> Ended:
        done = self._execute(block, block.preamble) if block.preamble else Ended(0, "", "")
        return done if done.code else self._execute(block, block.code)

    def _execute(self, block: Block, code: str) -> Ended:
        if self._python is None:
            self._errors = open(self.folder / ".errors", "w+")
            self._python = subprocess.Popen([os.environ["DPI_PYTHON"], "-u", str(HERE / "interpreter.py")], cwd=self.folder, text=True,
                                            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)  # fmt: skip
        mark, process, lines = uuid.uuid4().hex, self._python, []
        timer = threading.Timer(LIMIT_S, process.kill)
        timer.start()
        at = self._errors.seek(0, os.SEEK_END)
        told = {"mark": mark, "name": block.page, "line": block.line, "code": code}
        try:
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = ""
        for line in process.stdout:
            if mark in line:  # what was written without a newline stands in front of it
                before, _, answer = line.partition(mark)
                lines.append(before)
                break
            lines.append(line)
        timer.cancel()
        self._errors.seek(at)
        return Ended(0 if answer.strip() == "good" else 1, "".join(lines), self._errors.read())

    def run(self, block: Block) -> Ended:
        for commands in block.before:
            done = self.shell(commands)
            if done.code:
                return Ended(done.code, done.output, "what it says before the block failed\n" + done.errors)
        if block.file is not None:
            (self.folder / block.file).write_text(block.code)
            return Ended(block.exit_code, "", "")
        if block.language == "sh":
            return self.shell("".join(f". ./{file}\n" for file in block.shell) + block.code)
        return self.python(block) if block.language == "python" else self.c(block)


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines()[-25:])


def run_page(path: pathlib.Path) -> Report:
    """Runs every block; those behind one that failed are not run."""
    report = Report()
    try:
        blocks = blocks_of(path)
    except PageError as problem:
        report.failed.append(str(problem))
        return report
    lacks = missing()
    with tempfile.TemporaryDirectory(prefix="dpinfer-docs-", ignore_cleanup_errors=True) as folder:
        page, last = Page(pathlib.Path(folder)), None  # type: Page, Optional[Ended]
        try:
            for block in blocks:
                if block.shows:
                    got = "" if last is None else last.output if block.shows == "output" else last.errors
                    if last is not None and not fits(block.code, got, block.like):
                        report.failed.append(f"{block.place}: it wrote something else\n{_indented(got)}")
                        break
                    continue
                if block.language not in CODE and block.file is None:
                    continue
                why = block.not_run or next((lacks[n] for n in block.needs if n in lacks), None)
                last = None
                if why:
                    report.skipped.append(f"{block.place}: {why}")
                    continue
                began = time.monotonic()
                last = page.run(block)
                report.ran += 1
                report.slow += [f"{block.place}: {took:.0f} s"] if (took := time.monotonic() - began) > SLOW_S else []
                if last.code != block.exit_code:
                    said = f"exit code {last.code}, and {block.exit_code} is expected"
                    report.failed.append(f"{block.place}: {said}\n{_indented(last.output)}{_indented(last.errors)}")
                    break
        finally:
            page.close()
    return report
