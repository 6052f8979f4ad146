#!/usr/bin/env python3
"""Writes man/*.1 from the program's own --help. usage: tools/make_man.py build/dpinfer [FOLDER]"""
import pathlib
import re
import subprocess
import sys

program = sys.argv[1]
folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else pathlib.Path(__file__).resolve().parent.parent / "man")
folder.mkdir(exist_ok=True)
version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def escape(text):
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def page(name, title, text):
    lines = text.rstrip().splitlines()
    out = [f'.TH "{name.upper()}" "1" "" "dpinfer {version}" "dpinfer"', ".SH NAME", f"{escape(name)} \\- {escape(title)}",
           ".SH SYNOPSIS", ".nf", escape(lines[0]), ".fi", ".SH DESCRIPTION", ".nf"]
    for line in lines[1:]:
        out.append("\\&" + escape(line) if line else "")
    out += [".fi", ".SH SEE ALSO", "dpinfer(1)"]
    (folder / f"{name}.1").write_text("\n".join(out) + "\n")


main = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
page("dpinfer", "data-parallel neural-network inference on every device of a machine", main)
titles = {"run": "send a data set through a model", "bench": "measure what the devices do with a model",
          "devices": "list what there is to run on", "inspect": "say what a model takes and gives",
          "compile": "fill the engine cache", "cache": "look after the engine cache",
          "report": "make a page of what bench or run measured", "top": "show what running sessions do"}
for command in re.findall(r"^    dpinfer (\w+) ", main, re.M):
    if command in titles:
        text = subprocess.run([program, command, "--help"], capture_output=True, text=True, check=True).stdout
        page(f"dpinfer-{command}", titles[command], text)
