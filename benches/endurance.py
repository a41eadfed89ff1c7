#!/usr/bin/env python3
"""How stage 1 grows and how it goes on: time and peak memory over the number of images, and what a stop in the middle costs.

    python3 endurance.py growth --tlpipe target/release/tlpipe --images train.parquet --side 32 --rows 1000,10000,60000,1000000
    python3 endurance.py resume --tlpipe target/release/tlpipe --images train.parquet --side 96 --rows 60000 --rounds 3

`--images` is a Parquet file with at least 10,000 images in the Hugging Face layout; pyarrow cuts it (peers/requirements.txt).
More images are the first 10,000 under more file names, so under ids of their own: a million rows need no more disk. Times are
those of the whole process; the exponent is the slope of log(time) over log(rows) without the start, which is given apart.
"""
import argparse, json, math, os, shutil, signal, statistics, subprocess, tempfile, time

MOST = 10_000


def source(images, rows, folder):
    """A folder of Parquet files with so many rows."""
    assert rows < MOST or rows % MOST == 0, f"--rows {rows}: above {MOST}, a multiple of it"
    os.makedirs(folder)
    first = os.path.join(folder, "train-00000.parquet")
    # In a process of its own: the peak memory of a child counts what its parent had when it was started.
    if (child := os.fork()) == 0:
        status = 1
        try:
            import pyarrow.parquet as pq
            pq.write_table(pq.read_table(images).slice(0, min(rows, MOST)), first, row_group_size=1000)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, f"{images}: pyarrow cannot cut it"
    for copy in range(1, rows // MOST):
        os.link(first, os.path.join(folder, f"train-{copy:05}.parquet"))
    return folder


def start(args, data, features):
    command = [args.tlpipe, "--json", "-q", "extract", "--data", data, "--model", args.model, "--input-size", str(args.side), "--features", features]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(child):
    """Exit status and peak memory in bytes."""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss * 1024


def whole(args, data, features):
    """Seconds and peak bytes of one run from nothing to a finished store, and the store."""
    began = time.monotonic()
    status, peak = finish(start(args, data, features))
    seconds = time.monotonic() - began
    assert status == 0, f"tlpipe ended with {status}"
    return seconds, peak, json.load(open(os.path.join(features, "store.json")))


def slope(points):
    """Least squares through (log rows, log seconds)."""
    x, y = [math.log(rows) for rows, _ in points], [math.log(seconds) for _, seconds in points]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def growth(args, scratch):
    points, smallest = [], None
    print(f"{'rows':>9} {'process s':>10} {'start s':>8} {'img/s':>8} {'peak MiB':>9} {'of the first':>12}")
    for rows in args.rows:
        data = source(args.images, rows, os.path.join(scratch, f"data-{rows}"))
        taken = []
        for _ in range(args.rounds):
            features = os.path.join(scratch, "features")
            seconds, peak, store = whole(args, data, features)
            figures = store["extraction"]
            assert figures["rows"] == rows
            taken.append((seconds, figures["seconds"] - figures["startup_seconds"], peak))
            shutil.rmtree(features)
        seconds, net, peak = (statistics.median(column) for column in zip(*taken))
        smallest = smallest or peak
        points.append((rows, net))
        print(f"{rows:9,} {seconds:10.2f} {seconds - net:8.2f} {rows / net:8,.0f} {peak / 2**20:9.1f} {peak / smallest:12.3f}", flush=True)
        shutil.rmtree(data)
    if len(points) > 1:
        print(f"seconds grow with rows to the power of {slope(points):.3f}")


def resume(args, scratch):
    rows = args.rows[-1]
    data = source(args.images, rows, os.path.join(scratch, "data"))
    print(f"{'stopped by':>10} {'whole s':>8} {'stopped at s':>12} {'went on s':>10} {'overhead':>9} {'run again':>10}")
    overheads = {}
    for _ in range(args.rounds):
        features = os.path.join(scratch, "features")
        seconds, _, uninterrupted = whole(args, data, features)
        shutil.rmtree(features)
        for name in ("SIGTERM", "SIGKILL"):
            began = time.monotonic()
            child = start(args, data, features)
            time.sleep(seconds / 2)
            child.send_signal(getattr(signal, name))
            finish(child)
            stopped = time.monotonic() - began
            went_on, _, resumed = whole(args, data, features)
            rows_of = lambda store: [(shard["rows"], shard["blake3"]) for shard in store["shards"]]
            assert rows_of(resumed) == rows_of(uninterrupted), "the stores differ"
            overhead = (stopped + went_on) / seconds - 1
            overheads.setdefault(name, []).append(overhead)
            figures = resumed["extraction"]
            print(f"{name:>10} {seconds:8.2f} {stopped:12.2f} {went_on:10.2f} {overhead:9.1%} {figures['new']:10,}", flush=True)
            shutil.rmtree(features)
    for name, values in overheads.items():
        print(f"{name}: {statistics.median(values):.1%} more than without a stop (median)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["growth", "resume"])
    parser.add_argument("--tlpipe", default="target/release/tlpipe")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--images", required=True)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--rows", type=lambda text: [int(rows) for rows in text.split(",")], default=[60_000])
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        {"growth": growth, "resume": resume}[args.what](args, scratch)


main()
