#!/usr/bin/env python3
"""The experiment that dpinfer began with: ResNet-50 over random images by one device, split over all, and sharded over all;
its table beside the article's (4 x RTX 3080, TensorRT fp16, 204,800 images). Needs torch.

usage: article.py [--images 10240] [--batches 32,128,256] [--devices cpu:0,cpu:1] [--precision bf16] [--loaders 2]
                  [--model FILE.onnx | --model pt2]     pt2: compiled by AOTInductor, for GPUs where they are the devices
"""
import argparse
import time

import dpinfer
import torch
from resnet import resnet50  # beside this file

ARTICLE = {32: (63.47, 62.75, 57.59), 128: (58.05, 43.51, 33.73), 256: (56.16, 39.45, 29.06)}  # seconds


def seconds(results):
    began = time.perf_counter()
    return sum(len(y) for y in results) and time.perf_counter() - began


def row(times):
    return " | ".join(f"{t:.2f} ({times[0] / t:.2f})" for t in times) or " | | "


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    for name, default in (("images", "10240"), ("batches", "32,128,256"), ("devices", "cpu:0,cpu:1"), ("loaders", "2")):
        parser.add_argument(f"--{name}", default=default)
    for name in ("model", "precision"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    images, devices = torch.randn(64, 3, 224, 224), args.devices.split(",")
    data = torch.utils.data.Subset(images, [i % 64 for i in range(int(args.images))])
    if args.model == "pt2":  # a package has its precision already
        place, precision, args.precision = "cuda" if "cuda" in args.devices else "cpu", args.precision, None
        model = dpinfer.compile(resnet50, images[:2], format="pt2", device=place, precision=precision)
    else:
        model = args.model or dpinfer.compile(resnet50, images[:2])
    print("| batch per device | single | split | sharded | the article's: single | split | sharded |\n" + "|---" * 7 + "|")
    for batch in map(int, args.batches.split(",")):
        times, options = [], {"batch": batch, "precision": args.precision}
        for chosen in (devices[:1], devices):
            total = batch * len(chosen)
            x = images.repeat(-(-total // 64), 1, 1, 1)
            with dpinfer.DataParallel(model, devices=",".join(chosen), **options) as split:
                times.append(seconds(split(x[: min(total, len(data) - at)]) for at in range(0, len(data), total)))
        with dpinfer.DistributedSampled(model, data, int(args.loaders), batch_size=batch, devices=args.devices, **options) as sharded:
            times.append(seconds(sharded))
        print(f"| {batch} | {row(times)} | {row(ARTICLE.get(batch, ()))} |", flush=True)


if __name__ == "__main__":
    main()
