"""Images and tars as sources of `dpinfer run`: the pixels, what is bad, what is refused, and what happens when workers die."""
import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy
import onnx
from onnx import TensorProto, helper

from image_files import by_libarchive, photo, png, png_of_parts, resize_and_crop, resized, tar, vips

DPINFER, BUILD = os.environ["DPINFER"], pathlib.Path(os.environ["DPI_BUILD"])
if not (BUILD / "dpinfer-images.so").exists():
    print("built without libvips")
    sys.exit(77)
HAS_TAR = (BUILD / "dpinfer-tar.so").exists()
VIPS = vips()
failures = []


def check(good, text):
    if not good:
        failures.append(text)
        print("FAILED:", text, flush=True)


def identity(path, dtype, shape):
    x, y = (helper.make_tensor_value_info(name, dtype, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def run(*words, model="u8.onnx", devices="cpu:0", env=None, timeout=120, quiet=("-q",)):
    return subprocess.run([DPINFER, "run", model, *words, "--batch", "4", "--devices", devices, *quiet], cwd=work,
                          capture_output=True, text=True, timeout=timeout, errors="replace", env=env)


def rows_of(*words, code=0, **more):
    """The result of a run that must end with `code`, and what it said."""
    (work / "out.npy").unlink(missing_ok=True)
    done = run(*words, "--output", "out.npy", "--restart", **more)
    check(done.returncode == code, f"{words}: exit code {done.returncode}, not {code}: {done.stderr}")
    out = work / "out.npy"
    return (numpy.load(out) if out.exists() else None), done.stderr


def close(got, want, share=0.95):
    return got.shape == want.shape and (abs(got.astype(int) - want.astype(int)) <= 1).mean() >= share


def write(folder, files):
    (work / folder).mkdir(exist_ok=True)
    for name, data in files.items():
        path = work / folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)


def refused(why, *words, **more):
    done = run(*words, "--output", "out.npy", **more)
    check(done.returncode == 2 and why in done.stderr, f"{words}: {done.returncode} {done.stderr!r} does not say {why!r}")


# ---- the pixels ----------------------------------------------------------------------------------------------------


def test_pixels():
    images = {f"p{i}.png": photo(h, w, i) for i, (h, w) in enumerate([(300, 400), (64, 64), (97, 61), (500, 501), (40, 90)])}
    write("photos", {name: png(pixels) for name, pixels in images.items()})
    for recipe, resize, bicubic in (("imagenet", 73, False), ("clip", 64, True)):
        got, _ = rows_of("--input", "photos/", "--preprocess", recipe)
        for row, (name, pixels) in enumerate(images.items()):
            check(close(got[row], resize_and_crop(pixels, resize, 64, bicubic)), f"{recipe} {name}: other pixels")
    plain, _ = rows_of("--input", "photos")
    check(close(plain[0], resize_and_crop(images["p0.png"], 73, 64)), "uint8 without a recipe is not imagenet")
    both, _ = rows_of("--input", "photos", "--resize", "64x64", "--interpolation", "bicubic")
    check(close(both[4], resized(images["p4.png"], 64, 64, True)), "--resize HxW: other pixels")
    blue, _ = rows_of("--input", "photos", "--color", "bgr")
    check((blue == plain[..., ::-1]).all(), "--color bgr is not the reverse")
    planes, _ = rows_of("--input", "photos", "--preprocess", "imagenet", model="f32.onnx")
    mean, std = numpy.array([0.485, 0.456, 0.406]), numpy.array([0.229, 0.224, 0.225])
    want = ((plain / 255 - mean) / std).transpose(0, 3, 1, 2).astype(numpy.float32)
    check(numpy.abs(planes - want).max() < 1e-6, "imagenet's numbers are wrong")
    own, _ = rows_of("--input", "photos", "--resize", "73", "--scale", "1/255", "--mean", "0.5", "--std", "0.5,0.25,2",
                     model="f32.onnx")
    want = ((plain / 255 - 0.5) / numpy.array([0.5, 0.25, 2])).transpose(0, 3, 1, 2)
    check(numpy.abs(own - want).max() < 1e-6, "--scale, --mean and --std give other numbers")
    half, _ = rows_of("--input", "photos", "--preprocess", "imagenet", model="f16.onnx")
    check(half.dtype == numpy.float16 and numpy.abs(half - planes).max() < 2e-3, "float16 gives other numbers")
    for devices in ("cpu:0*2", "cpu:0-1"):
        again, _ = rows_of("--input", "photos", devices=devices, code=0)
        check((again == plain).all(), f"other pixels on {devices}")
    for threads in ("1", "3"):
        again, _ = rows_of("--input", "photos", "--loader-threads", threads)
        check((again == plain).all(), f"other pixels by {threads} threads")
    for isolation in ("thread", "strict"):
        again, _ = rows_of("--input", "photos", "--isolation", isolation)
        check((again == plain).all(), f"other pixels in {isolation} isolation")


def test_kinds_of_pixels():
    grey, colour, alpha = photo(80, 100, 7, 1), photo(80, 100, 8), photo(80, 100, 9, 4)
    wide = numpy.array(colour, numpy.uint16) * 257
    write("kinds", {"a-grey.png": png(grey), "b-alpha.png": png(alpha), "c-wide.png": png(wide),
                    "d-grey-alpha.png": png(photo(80, 100, 10, 2)), "e-one.png": png(colour[:1, :1])})
    got, _ = rows_of("--input", "kinds")
    check(close(got[0], resize_and_crop(grey.repeat(3, 2), 73, 64)), "grey is not all three channels")
    check(close(got[1], resize_and_crop(alpha[..., :3].copy(), 73, 64)), "alpha is not just dropped")
    check(close(got[2], resize_and_crop(colour, 73, 64)), "16 bits are not the high byte")
    check((got[4] == colour[0, 0]).all(), "a single pixel does not fill the row")
    one, _ = rows_of("--input", "kinds", model="grey.onnx")
    check(close(one[0][0], resize_and_crop(grey, 73, 64)[..., 0]), "a model of one channel does not get grey")
    if not VIPS:
        return
    (work / "more").mkdir()
    large = photo(700, 900, 11)
    VIPS.write(large, work / "more/a-large.jpg[Q=95]")
    VIPS.write(large, work / "more/b-large.png")
    VIPS.write(colour, work / "more/c.tif")
    VIPS.write(colour, work / "more/d.webp[lossless]")
    VIPS.write(colour, work / "more/e-turned.jpg[Q=98]", orientation=6)
    VIPS.write(255 - alpha, work / "more/f-ink.tif", cmyk=True)
    shutil.copy(work / "more/c.tif", work / "more/g-wrong-suffix.jpg")
    got, _ = rows_of("--input", "more")
    check(close(got[0], got[1]), "shrinking while loading changes more than 5 % of the values")
    check(close(got[2], resize_and_crop(colour, 73, 64)), "TIFF: other pixels")
    check(close(got[3], resize_and_crop(colour, 73, 64)), "WebP: other pixels")
    check(close(got[4], resize_and_crop(colour, 73, 64), 0.5), "EXIF's orientation is followed")
    ink = (255 - alpha).astype(int)
    want = ((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255 + 0.5).astype(numpy.uint8)
    check((abs(got[5].astype(int) - resize_and_crop(want, 73, 64)) <= 4).mean() > 0.9, "ink is not turned into light")
    check((got[6] == got[2]).all(), "a wrong suffix changes the pixels")


# ---- what spec means what ------------------------------------------------------------------------------------------


def test_specs():
    write("tree", {"b/2.png": png(photo(70, 70, 1)), "a.png": png(photo(70, 70, 2)), "b/1.PNG": png(photo(70, 70, 3)),
                   ".hidden.png": b"", "notes.md": b"no image", "é.png": png(photo(70, 70, 4))})
    (work / "tree/link.png").symlink_to("a.png")
    (work / "elsewhere").mkdir()
    (work / "elsewhere/far.png").write_bytes(png(photo(70, 70, 5)))
    (work / "tree/m.png").symlink_to(work / "elsewhere/far.png")
    got, _ = rows_of("--input", "tree")
    order = ["a.png", "b/1.PNG", "b/2.png", "link.png", "m.png", "é.png"]
    check(len(got) == len(order), f"{len(got)} rows of a folder with {len(order)} images")
    alone = {name: rows_of("--input", f"tree/{name}")[0][0] for name in ("a.png", "b/1.PNG", "b/2.png", "é.png")}
    for row, name in enumerate(order):
        if name in alone:
            check((got[row] == alone[name]).all(), f"row {row} is not {name}")
    check((got[3] == got[0]).all(), "a link is not what it leads to")
    pattern, _ = rows_of("--input", "tree/b/*")
    check((pattern == got[1:3]).all(), "a pattern is not sorted")
    (work / "tree/list.txt").write_text(f"b/2.png\r\n\n{work}/tree/a.png\nb/2.png\n")
    listed, _ = rows_of("--input", "tree/list.txt")
    check((listed == got[[2, 0, 2]]).all(), "a list is not in its own order")
    named, _ = rows_of("--input", "x=images:tree/list.txt", "--rows", "1:3")
    check((named == listed[1:]).all(), "--rows of a list gives others")
    (work / "empty").mkdir()
    refused("there is no image in", "--input", "empty")
    refused("there is no file", "--input", "tree/*.gif")
    refused("cannot open", "--input", "nothing.jpg")
    refused("--preprocess", "--input", "tree", model="f32.onnx")
    refused("no recipe", "--input", "tree", "--preprocess", "imagnet", model="f32.onnx")
    refused("stay as they are", "--input", "tree", "--scale", "2")
    refused("--crop", "--input", "tree", "--crop", "32")
    refused("smaller", "--input", "tree", "--resize", "32")
    refused("no images", "--input", "tree", model="m.sim", devices="sim:0")
    refused("--max-pixels", "--input", "tree", "--max-pixels", "many")
    free, _ = rows_of("--input", "tree", "--crop", "20x30", "--resize", "40", model="free.onnx")
    check(free.shape == (6, 3, 20, 30), f"--crop of a free model gives {free.shape}")
    sized, text = rows_of("--input", "tree", "--preprocess", "none", code=3)
    check("70 x 70 pixels where 64 x 64" in text, f"none resizes: {text}")


def test_names_in_text():
    names = ["a.png", "b/\"2\", too.png", os.fsdecode(b"\xff.png"), "é.png"]
    write("named", {name: png(photo(64, 64, row)) for row, name in enumerate(names)})
    for output, words in (("n.jsonl", []), ("n.csv", []), ("n.jsonl", ["--rows", "1:3"])):
        done = run("--input", "named", "--output", output, *words, model="m4.sim", devices="sim:0*2")
        check(done.returncode == 0, f"{output} of images: {done.returncode} {done.stderr}")
        text = (work / output).read_text(errors="replace")
        if output == "n.csv":
            lines = [(line["row"], line["name"]) for line in csv.DictReader(text.splitlines())]
        else:
            lines = [(str(line["row"]), line["name"]) for line in map(json.loads, text.splitlines())]
        order = sorted(("named/" + name for name in names), key=os.fsencode)
        want = [(str(row), name.encode(errors="replace").decode()) for row, name in enumerate(order)]
        lines = [(row, name.replace("\ufffd", "?")) for row, name in lines]
        check(lines == (want[1:3] if words else want), f"{output} {words}: the names are {lines}, not {want}")


# ---- bad rows ------------------------------------------------------------------------------------------------------


def test_bad_images():
    good = png(photo(90, 90, 20))
    bomb = png_of_parts(20000, 20000, 8, 2, b"\x78\x9c")
    files = {"00.png": good, "01-cut.png": good[: len(good) // 2], "02-empty.png": b"", "03-text.jpg": b"no image at all",
             "04-bomb.png": bomb, "05-wide-bomb.png": png_of_parts(2**31 - 1, 2**31 - 1, 8, 2, b""),
             "06.png": good, "07-noise.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "08-large.png": good + bytes(100000),
             "09-jpeg.jpg": b"\xff\xd8\xff\xe0" + bytes(64), "10-tiff.tif": b"II*\0" + b"\xff" * 64,
             "11-webp.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 64, "12\n\xff.png".encode("latin-1").decode("latin-1"): b"",
             "13.png": good}
    write("bad", {k: v for k, v in files.items() if not k.startswith("12")})
    with open(os.fsencode(work / "bad") + b"/12\n\xff.png", "wb"):
        pass
    os.mkfifo(work / "bad/14-pipe.png")
    (work / "bad/15-dangling.png").symlink_to("/nowhere.png")
    (work / "bad/16-locked.png").write_bytes(good)
    os.chmod(work / "bad/16-locked.png", 0)
    root = os.geteuid() == 0
    expected = [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15] + ([] if root else [16])
    words = ("--input", "bad", "--max-image-bytes", "100K", "--events", "events.json", "--preprocess", "imagenet")
    got, text = rows_of(*words, code=3, model="f32.onnx")
    events = [json.loads(line) for line in (work / "events.json").read_text().splitlines()]
    told = {e["row"]: e["reason"] for e in events if e["event"] == "bad_row"}
    check(sorted(told) == expected, f"bad rows are {sorted(told)}, not {expected}: {told}")
    for row in range(17):
        check(numpy.isnan(got[row]).all() == (row in expected), f"row {row} is {'not ' * (row in expected)}NaN")
    check((got[0] == got[6]).all() and (got[0] == got[13]).all(), "good rows among bad ones differ")
    for row, word in ((1, "01-cut.png"), (2, "is empty"), (3, "no JPEG"), (4, "20000 x 20000"), (8, "--max-image-bytes"),
                      (12, "12\\x0a\\xff.png"), (14, "no regular file"), (15, "No such file")):
        check(word in told.get(row, ""), f"row {row} is bad because {told.get(row)!r}, which does not say {word!r}")
    check(not any(e["event"] in ("death", "died", "restart") for e in events), f"workers died: {events}")
    zero, _ = rows_of("--input", "bad", code=3)
    check(zero[4].max() == 0 and zero[0].max() > 0, "bad rows of integers are not 0")
    _, text = rows_of("--input", "bad", "--on-bad-row", "fail", code=2)
    check("01-cut.png" in text, f"--on-bad-row fail does not name the file: {text}")
    _, text = rows_of("--input", "bad", "--max-bad-rows", "3", code=2)
    check("too many" in text, f"--max-bad-rows 3: {text}")
    for isolation in ("thread", "strict"):
        csv = run("--input", "bad", "--output", "none", "--isolation", isolation)
        check(csv.returncode == 3, f"{isolation} isolation: {csv.returncode} {csv.stderr}")
    strict, _ = rows_of("--input", "bad", "--isolation", "strict", code=3)
    check((strict == zero).all(), "bad rows differ in strict isolation")
    _, text = rows_of("--input", "photos", "--max-pixels", "200000", code=3)
    check("500 x 501" not in text and "501 x 500" in text, f"--max-pixels: {text}")


def test_vanishing():
    names = [f"{i:03}.png" for i in range(60)]
    write("vanish", {name: png(photo(200, 200, i)) for i, name in enumerate(names)})
    model = "slow.sim"
    (work / model).write_text("input x uint8 N 64 64 3\noutput y float32 N 4\nfixed_us 100000\n")
    process = subprocess.Popen([DPINFER, "run", model, "--input", "vanish", "--output", "v.npy", "--batch", "4", "--devices",
                                "sim:0", "--events", "v.json"], cwd=work, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (work / "v.npy.part").exists():
        time.sleep(0.002)
    (work / "vanish/059.png").unlink()
    _, text = process.communicate(timeout=60)
    check(process.returncode == 3 and "059.png" in text, f"a file that vanishes: {process.returncode} {text}")


# ---- faults --------------------------------------------------------------------------------------------------------


def workers_of(process):
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in out.split()]


def wait_for_records(process, journal, count):
    """Until the run has recorded rows so many times, or has ended."""
    states = set()
    while len(states) <= count and process.poll() is None:
        if journal.exists():
            states.add(journal.stat().st_size)
        time.sleep(0.002)


def test_killed_workers():
    write("many", {f"{i:03}.png": png(photo(120 + i, 150, i)) for i in range(80)})
    write("many", {"007.png": b"", "041.png": b"junk"})
    (work / "net.sim").write_text("input x uint8 N 64 64 3\noutput y float32 N 8\nfixed_us 30000\n")
    words = ["--input", "many", "--batch", "4", "--devices", "sim:0*2", "--journal-every", "0.05", "-q"]

    def start(output):
        return subprocess.Popen([DPINFER, "run", "net.sim", "--output", output, *words, "--events", f"{output}.json"],
                                cwd=work, stderr=subprocess.PIPE, text=True)

    whole = start("whole.npy")
    whole.communicate(timeout=120)
    check(whole.returncode == 3, f"the undisturbed run ended with {whole.returncode}")
    want = (work / "whole.npy").read_bytes()
    process, killed = start("killed.npy"), 0
    while process.poll() is None and killed < 3:
        told = (work / "killed.npy.json").read_text() if (work / "killed.npy.part").exists() else ""
        if told.count('"started"') < 2 + killed: # both workers, and a successor of each that was killed
            time.sleep(0.002)
            continue
        for pid in workers_of(process)[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    text = process.communicate(timeout=120)[1]
    check(process.returncode == 3 and killed, f"{killed} kills: {process.returncode} {text}")
    check((work / "killed.npy").read_bytes() == want, f"another result after {killed} kills of workers")
    bad = [json.loads(line)["row"] for line in (work / "killed.npy.json").read_text().splitlines() if '"bad_row"' in line]
    check(sorted(bad) == [7, 41], f"bad rows were told as {bad}")
    for turn in range(40):
        process = start("resumed.npy")
        wait_for_records(process, work / "resumed.npy.journal", 1 + turn % 3)
        process.kill()
        text = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            break
    check(process.returncode == 3, f"resumed to the end: {process.returncode} {text}")
    check((work / "resumed.npy").read_bytes() == want, "a resumed run has another result")
    process = start("changed.npy")
    while process.poll() is None and not (work / "changed.npy.journal").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    if (work / "changed.npy.journal").exists():
        (work / "many/000.png").write_bytes(png(photo(100, 100, 999)))
        other = start("changed.npy")
        text = other.communicate(timeout=60)[1]
        check(other.returncode == 2 and "the source of x" in text, f"a changed image: {other.returncode} {text}")


# ---- tars ----------------------------------------------------------------------------------------------------------


def test_tars():
    pictures = [png(photo(70, 80, i)) for i in range(7)]
    (work / "tars").mkdir()
    long = "deep/" * 30 + "name"
    (work / "tars/s-00.tar").write_bytes(tar([("a.cls", b"3"), ("a.png", pictures[0]), ("b.png", pictures[1]), ("b.json", b"{}"),
                                              ("b.seg.png", pictures[2]), ("../up/c.png", pictures[2])]))
    (work / "tars/s-01.tar").write_bytes(tar([("d.txt", b"no image"), (f"{long}.png", pictures[3]), ("/etc/e.png", pictures[4]),
                                              ("f.PNG", pictures[5]), ("g.png", b"")]))
    write("flat", {f"{i}.png": data for i, data in enumerate(pictures)})
    flat, _ = rows_of("--input", "flat")
    got, text = rows_of("--input", "tars/s-{00..01}.tar", code=3)
    check(got is not None and len(got) == 8, f"{None if got is None else len(got)} samples, not 8")
    for row, picture in enumerate([0, 1, 2, None, 3, 4, 5, None]):
        want = flat[picture] if picture is not None else 0 * flat[0]
        check((got[row] == want).all(), f"row {row} of the tars is another")
    check("d: the sample has no image" in text and "g: is empty" in text, f"tars: {text}")
    other, _ = rows_of("--input", "tars/s-00.tar", "--member", "seg.png", code=3)
    check((other[1] == flat[2]).all() and other[0].max() == 0, "--member takes another")
    star, _ = rows_of("--input", "tars/s-*.tar", code=3)
    check((star == got).all(), "a pattern of tars is another")

    whole = tar([(f"{i}.png", pictures[i]) for i in range(6)])
    cut = whole.index(pictures[4]) + len(pictures[4]) // 2
    (work / "cut.tar").write_bytes(whole[:cut])
    got, text = rows_of("--input", "cut.tar", code=3)
    check(len(got) == 5 and (got[:4] == flat[:4]).all() and got[4].max() == 0, "rows before the cut are not there")
    check("4: the tar is cut short" in text, f"a cut is not told: {text}")
    check("cut.tar is cut short" in run("--input", "cut.tar", "--output", "none", quiet=()).stderr, "a cut is not told")
    (work / "head.tar").write_bytes(whole[: whole.index(pictures[4]) - 300])
    got, text = rows_of("--input", "head.tar", code=3)
    check(len(got) == 5 and (got[:4] == flat[:4]).all() and "head.tar: the tar is cut short" in text, f"a cut header: {text}")
    (work / "edge.tar").write_bytes(whole[: whole.index(b"4.png\0")])
    got, text = rows_of("--input", "edge.tar", code=3)
    check(len(got) == 5 and (got[:4] == flat[:4]).all(), f"a cut between two members: {text}")
    at = whole.index(b"2.png\0")
    for size in (b"\x80" + b"\x7f" * 11, b"\x80" + bytes(3) + b"\x7f" * 8, b"\xff" * 12):
        data = bytearray(whole)
        data[at + 124 : at + 136] = size
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        (work / "size.tar").write_bytes(data)
        got, text = rows_of("--input", "size.tar", code=3)
        check(len(got) == 3 and (got[:2] == flat[:2]).all() and "cut short" in text, f"a member of size {size}: {text}")
    (work / "no.tar").write_bytes(b"this is no tar" * 100)
    refused("is no tar", "--input", "no.tar")
    refused("cannot open", "--input", "tars/s-{02..03}.tar")


def packed(data, suffix):
    import bz2
    import gzip
    import lzma
    own = {"gz": lambda: gzip.compress(data), "tgz": lambda: gzip.compress(data), "xz": lambda: lzma.compress(data),
           "bz2": lambda: bz2.compress(data)}
    return own[suffix]() if suffix in own else by_libarchive(data, {"zst": "zstd", "lz4": "lz4"}[suffix])


def test_packed_tars():
    pictures = [png(photo(70, 80, i)) for i in range(6)]
    whole = tar([(f"{i}.{suffix}", data) for i in range(6) for suffix, data in (("cls", b"3"), ("png", pictures[i]))])
    (work / "flat.tar").write_bytes(whole)
    want, _ = rows_of("--input", "flat.tar")
    for suffix in ("gz", "tgz", "xz", "bz2", "zst", "lz4"):
        name = f"p.{'' if suffix == 'tgz' else 'tar.'}{suffix}"
        (work / name).write_bytes(packed(whole, suffix))
        got, _ = rows_of("--input", name)
        check(got is not None and (got == want).all(), f"{name} gives other rows")
    got, _ = rows_of("--input", "p.tar.gz", "--isolation", "thread")
    check((got == want).all(), "a .tar.gz gives other rows in thread isolation")
    (work / "t-0.tar.gz").write_bytes(packed(tar([("a.png", pictures[0]), ("e.png", b""), ("d.txt", b"no image")]), "gz"))
    (work / "t-1.tar.gz").write_bytes(whole) # packed or not, whatever its name
    (work / "t-2.tar.gz").write_bytes(packed(tar([("deep/b.jpg.png", pictures[1]), ("deep/b.png", pictures[2])]), "xz"))
    got, text = rows_of("--input", "t-{0..2}.tar.gz", code=3)
    check(len(got) == 10 and (got[0] == want[0]).all() and (got[3:9] == want).all() and (got[9] == want[2]).all(), "several .tar.gz")
    check("e: is empty" in text and "d: the sample has no image" in text, f"several .tar.gz: {text}")
    run("--input", "t-2.tar.gz", "--output", "keys.csv", model="m4.sim", devices="sim:0")
    check((work / "keys.csv").read_text().splitlines()[1].startswith("0,deep/b,"), "keys of a .tar.gz")

    # A worker that dies has a successor with the same rows, and a run that was killed goes on.
    for name, more in (("calm", ()), ("dies", ("--backend-option", "die_at_slice=2", "--backend-option", "fault_generations=1"))):
        done = run("--input", "p.tar.gz", "--output", f"{name}.npy", *more, model="m4.sim", devices="sim:0*2")
        check(done.returncode == 0, f"{name}: {done.stderr}")
    check((work / "calm.npy").read_bytes() == (work / "dies.npy").read_bytes(), "another result after a worker's death")
    (work / "slow4.sim").write_text((work / "m4.sim").read_text() + "fixed_us 150000\n")
    words = [DPINFER, "run", "slow4.sim", "--input", "p.tar.gz", "--output", "on.npy", "--batch", "1", "--devices", "sim:0",
             "--journal-every", "0.02"]
    process = subprocess.Popen(words, cwd=work, stderr=subprocess.DEVNULL)
    wait_for_records(process, work / "on.npy.journal", 2)
    process.kill()
    process.wait()
    done = subprocess.run(words, cwd=work, capture_output=True, text=True)
    check(done.returncode == 0 and "resuming" in done.stderr, f"a killed run over a .tar.gz: {done.stderr}")
    check((work / "calm.npy").read_bytes() == (work / "on.npy").read_bytes(), "a resumed run over a .tar.gz has another result")


def zeros_within(bytes_of_zeros, name, before, after):
    """A .tar.gz of some kilobytes that has so many zeros (of 64 MiB each) as a member, between others."""
    import gzip
    import tarfile
    size = 64 << 20
    info = tarfile.TarInfo(name)
    info.size = bytes_of_zeros
    piece = gzip.compress(bytes(size), 9)
    return gzip.compress(tar(before)[:-10240] if before else b"") + gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + \
        piece * (bytes_of_zeros // size) + gzip.compress(tar(after))


def test_hostile_packed_tars():
    pictures = [png(photo(70, 80, i)) for i in range(6)]
    flat = [(f"{i}.png", picture) for i, picture in enumerate(pictures)]
    (work / "flat.tar").write_bytes(tar(flat))
    want, _ = rows_of("--input", "flat.tar", model="m4.sim", devices="sim:0")
    small = {"model": "m4.sim", "devices": "sim:0"}

    # Bombs: what is not kept counts, and an image that is too large is a bad row of which nothing is kept
    (work / "bomb.tar.gz").write_bytes(zeros_within(256 << 20, "x.txt", flat[:0], flat))
    refused("--spool-max", "--input", "bomb.tar.gz", "--spool-max", "200M", **small)
    check(len(rows_of("--input", "bomb.tar.gz", "--spool-max", "300M", code=3, **small)[0]) == 7, "under the limit")
    (work / "large.tar.gz").write_bytes(zeros_within(256 << 20, "0a.png", [], flat))
    limited = ["bash", "-c", 'ulimit -f 200000; exec "$@"', "-", DPINFER, "run", "m4.sim", "--input", "large.tar.gz", "--devices", "sim:0"]
    done = subprocess.run([*limited, "--max-image-bytes", "1M", "--output", "large.npy"], cwd=work, capture_output=True, text=True)
    check(done.returncode == 3 and "1048576 are allowed" in done.stderr, f"a huge member: {done.returncode} {done.stderr}")
    check((numpy.load(work / "large.npy")[1:] == want).all(), "rows behind a huge member are others")
    done = subprocess.run([*limited, "--output", "large2.npy"], cwd=work, capture_output=True, text=True)
    check(done.returncode == 1 and "ulimit -f" in done.stderr, f"ulimit -f: {done.returncode} {done.stderr}")
    done = run("--input", "large.tar.gz", "--output", "none", env={**os.environ, "TMPDIR": "/nonexistent"}, **small)
    check(done.returncode == 1 and "TMPDIR" in done.stderr, f"no TMPDIR: {done.returncode} {done.stderr}")
    (work / "endless.tar.gz").write_bytes(zeros_within(1 << 40, "x.txt", [], flat)) # hours
    process = subprocess.Popen([DPINFER, "run", "m4.sim", "--input", "endless.tar.gz", "--output", "none", "--spool-max", "2T",
                                "--devices", "sim:0"], cwd=work, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any("(deleted)" in link and "memfd" not in link for link in links_of(process.pid)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[1]
    check(process.returncode == 130, f"Ctrl-C while a tar is unpacked: {process.returncode} {text}")

    # What is no such tar, or not all of one
    for name, data in (("z", b"\x1f\x8b" + bytes(100)), ("noise", packed(os.urandom(5000), "gz")), ("empty", packed(b"", "gz")),
                       ("twice", packed(packed(tar(flat), "gz"), "gz")), ("head", packed(tar(flat), "gz")[:10])):
        (work / f"{name}.tar.gz").write_bytes(data)
        refused(f"{name}.tar.gz", "--input", f"{name}.tar.gz", **small)
    chance = numpy.random.default_rng(5)
    for suffix in ("gz", "zst", "xz"):
        data = packed(tar(flat), suffix)
        for turn in range(8):
            broken = bytearray(data)
            if turn % 2:
                del broken[int(chance.integers(20, len(data) - 20)) :]
            else:
                for at in chance.integers(20, len(data), 3):
                    broken[at] ^= int(chance.integers(1, 256))
            (work / "broken.tar.gz").write_bytes(broken)
            (work / "broken.npy").unlink(missing_ok=True)
            done = run("--input", "broken.tar.gz", "--output", "broken.npy", "--events", "broken.json", "--restart", **small)
            check(done.returncode in ((2, 3) if turn % 2 else (0, 2, 3)), f"{suffix} {turn}: {done.returncode} {done.stderr}")
            check('"died"' not in (work / "broken.json").read_text(), f"{suffix} {turn}: a worker died")
            if turn % 2 and done.returncode == 3:
                got = numpy.load(work / "broken.npy")
                good = [i for i in range(min(len(got), 6)) if (got[i] == want[i]).all()]
                check(good == list(range(len(got) - 1)), f"{suffix} cut: {good} of {len(got)} rows are whole")


def links_of(pid):
    out = []
    for entry in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
        try:
            out.append(os.readlink(entry))
        except OSError:
            pass
    return out


def test_sandbox_and_missing_parts():
    if not os.environ.get("DPI_SANITIZE"):
        bare = work / "bare"
        bare.mkdir()
        for name in ("dpinfer", "dpinfer-worker"):
            shutil.copy(BUILD / name, bare / name)
        env = {k: v for k, v in os.environ.items() if k != "DPINFER_WORKER"}
        done = subprocess.run([bare / "dpinfer", "run", "m4.sim", "--input", "photos", "--output", "none"], cwd=work, env=env,
                              capture_output=True, text=True)
        check(done.returncode != 0 and "libvips-dev" in done.stderr, f"without the module: {done.returncode} {done.stderr}")
        done = subprocess.run([bare / "dpinfer", "run", "m4.sim", "--input", "cut.tar", "--output", "none"], cwd=work, env=env,
                              capture_output=True, text=True)
        check(done.returncode != 0 and "libarchive-dev" in done.stderr, f"without the module: {done.returncode} {done.stderr}")
    dry = run("--input", "photos", "--dry-run")
    check(dry.returncode == 0 and "[5,64,64,3]" in dry.stdout, f"--dry-run: {dry.stdout} {dry.stderr}")


with tempfile.TemporaryDirectory(prefix="dpinfer-images-") as folder:
    work = pathlib.Path(folder)
    identity(work / "u8.onnx", TensorProto.UINT8, ["N", 64, 64, 3])
    identity(work / "f32.onnx", TensorProto.FLOAT, ["N", 3, 64, 64])
    identity(work / "f16.onnx", TensorProto.FLOAT16, ["N", 3, 64, 64])
    identity(work / "grey.onnx", TensorProto.UINT8, ["N", 1, 64, 64])
    identity(work / "free.onnx", TensorProto.UINT8, ["N", 3, "H", "W"])
    (work / "m.sim").write_text("input x float32 N 8\noutput y float32 N 4\n")
    (work / "m4.sim").write_text("input x uint8 N 64 64 3\noutput y float32 N 4\n")
    chosen = sys.argv[1:]
    for name, test in [(n, t) for n, t in globals().copy().items() if n.startswith("test_")]:
        if (not chosen or name in chosen) and (HAS_TAR or "tar" not in name):
            began = time.monotonic()
            test()
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)

sys.exit(bool(failures))
