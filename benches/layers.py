#!/usr/bin/env python3
"""What the depths of a frozen network are worth: the table of docs/layers.md.

    python3 layers.py --tlpipe target/release/tlpipe --data cifar10 --folder /tmp/layers
    python3 layers.py ... --sides 96,160 --layers pooled,multi-all --views identity,identity+hflip --heads ridge

Each combination of side, layers and views is a feature store below --folder (CIFAR-10 at every size: some 60 GB; --remove deletes each
store once its heads are fitted), each head a run beside it. What is there already is not done again, so a stopped table goes on
with the same command. `--curve 96` instead asks what tensors earn their cost: from the last one back to the first, more and more of them, ridge on
one view beside the time of the network alone (by Python's onnxruntime), as a table and as `--svg FILE` (by matplotlib).

Heads: `adam` is the guide's recipe, `lbfgs` a sweep of six strengths of L2 (four on more than the last layer, where the weakest takes
minutes) and a last fit on all of train, `ridge` chooses L2 on the hold-out and is fitted again on all of train; with two views `ridge` trains
on each of them. The time of a fit is that of all of it, the sweep among it.
"""
import argparse, json, os, shutil, subprocess, time

HEADS = {
    "adam": ["--solver", "adam"],
    "lbfgs": ["--solver", "lbfgs", "--sweep"],
    "ridge": ["--solver", "ridge", "--set", "head.refit=true", "--set", "head.keep_statistics=false"],
}
GRID, WIDE_GRID = "l2=1e-3,3e-3,1e-2,3e-2,1e-1,3e-1", "l2=3e-3,1e-2,3e-2,1e-1"


def run(*command):
    print("+", *command, flush=True)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def size(folder):
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)


def extract(args, name, side, layers, views):
    """Makes a store; its time, of one run without a stop, and its size are kept beside it."""
    figures = name + ".json"
    if not os.path.exists(figures):
        shutil.rmtree(name, ignore_errors=True)
    of = ["--data", args.data, "--model", args.model, "--input-size", side, "--layers", layers]
    of += ["--views", views.replace("+", ","), "--dtype", "float16", *args.extract.split()]
    found = run(args.tlpipe, "--json", "extract", *of, "--features", name)
    if not os.path.exists(figures):
        with open(figures, "w") as file:
            json.dump({"seconds": found["seconds"], "bytes": size(name)}, file)


def fit(args, name, folder, head, *more):
    run(args.tlpipe, "--json", "fit-head", "--features", name, "--run", folder, *HEADS[head], *more)


def read(path):
    with open(path) as file:
        return json.load(file)


def fit_seconds(metrics):
    """Seconds of a fit, those of what a sweep tried among them."""
    return metrics["fit_seconds"] + sum(trial["seconds"] for trial in (metrics["sweep"] or {"trials": []})["trials"])


def table(head, rows):
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")


def costs(args, side, sets):
    """Time of the network alone on one thread, as a multiple of that of the first set; each batch is run by one after the other, so that
    a machine that slows down slows all of them down."""
    import numpy, onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = []
    for at, layers in enumerate(sets):
        cut = os.path.join(args.folder, f"curve-{side}-{at}.onnx")
        subprocess.run([args.tlpipe, "--quiet", "models", "cut", args.model, "--layers", layers, "-o", cut], check=True)
        sessions.append(onnxruntime.InferenceSession(cut, options, providers=["CPUExecutionProvider"]))
    _, *axes = sessions[0].get_inputs()[0].shape
    shape = [8, *(axis if isinstance(axis, int) else int(side) for axis in axes)]
    batch = numpy.random.default_rng(0).uniform(-1, 1, shape).astype(numpy.float32)
    took = [[] for _ in sessions]
    for _ in range(300):
        for of, session in zip(took, sessions):
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: batch})
            of.append(time.perf_counter() - start)
    medians = [numpy.median(of[20:]) for of in took]
    return [float(median / medians[0]) for median in medians]


def curve(args):
    """Accuracy of the last tensors against the time of the network that gives them."""
    side = args.curve
    taps = [tap["tensor"] for tap in run(args.tlpipe, "--json", "models", "inspect", args.model)["taps"]]
    sets = {"the cut alone": "pooled", "`multi`": "multi"}
    for count in [*range(4, len(taps) - 3, 4), len(taps) - 3, len(taps)]:
        sets[f"the last {count} and the cut"] = ",".join(taps[-count:])
    rows, points = [], []
    for at, ((label, layers), cost) in enumerate(zip(sets.items(), costs(args, side, sets.values()))):
        name = os.path.join(args.folder, f"curve-{side}-{at}")
        folder = name + "-ridge"
        if not os.path.exists(os.path.join(folder, "metrics.json")):
            extract(args, name, side, layers, "identity")
            fit(args, name, folder, "ridge")
        metrics = read(os.path.join(folder, "metrics.json"))
        accuracy = [metrics[part]["accuracy"] for part in ("validation", "test")]
        rows.append([label, f"{metrics['features']:,}", *(f"{value:.4f}" for value in accuracy), f"{cost:.3f}", f"{fit_seconds(metrics):.1f} s"])
        points.append((cost, accuracy[1], label))
        print(*rows[-1], sep=" | ", flush=True)
        if args.remove:
            shutil.rmtree(name, ignore_errors=True)
    table(["tensors", "features", "hold-out", "test", "network alone, x the cut", "fit"], rows)
    if args.svg:
        draw(side, points, args.svg)


def draw(side, points, path):
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    matplotlib.rcParams.update({"svg.hashsalt": "layers", "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    line = [point for point in points if point[2] != "`multi`"]
    axes.plot([point[0] for point in line], [point[1] for point in line], marker="o", color="#1f6f8b")
    for cost, accuracy, label in points:
        aside = label == "`multi`"
        if aside:
            axes.plot([cost], [accuracy], marker="D", color="#c8553d", linestyle="none")
        name = label.strip("`").replace("the last ", "").replace(" and the cut", "").replace("the cut alone", "the cut")
        axes.annotate(name, (cost, accuracy), xytext=(0, -15 if aside else 7), textcoords="offset points", fontsize=8, ha="center")
    axes.margins(0.07, 0.1)
    axes.set_xlabel("time of the network alone, times that of the cut (one thread)")
    axes.set_ylabel("test accuracy, ridge")
    axes.set_title(f"CIFAR-10, MobileNetV2 at {side} px: the last tensors, how many of them", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tlpipe", required=True)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--sides", default="32,64,96,128,160,192,224")
    parser.add_argument("--layers", default="pooled,multi,multi-all")
    parser.add_argument("--views", default="identity,identity+hflip")
    parser.add_argument("--heads", default="adam,lbfgs,ridge")
    parser.add_argument("--extract", default="", help="further flags of extract, as in '--device cuda'")
    parser.add_argument("--curve", metavar="SIDE", help="accuracy against time at this side, instead of the table")
    parser.add_argument("--svg", metavar="FILE", help="draw the curve into this file")
    parser.add_argument("--remove", action="store_true", help="delete each store once its heads are fitted")
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    if args.curve:
        return curve(args)
    rows = []
    for side in args.sides.split(","):
        for layers in args.layers.split(","):
            for views in args.views.split(","):
                name = os.path.join(args.folder, f"{side}-{layers}-{views}")
                figures, runs = name + ".json", {head: f"{name}-{head}" for head in args.heads.split(",")}
                missing = [head for head, folder in runs.items() if not os.path.exists(os.path.join(folder, "metrics.json"))]
                if missing or not os.path.exists(figures):
                    extract(args, name, side, layers, views)
                for head in missing:
                    more = ["--set", "head.views=augment"] if head == "ridge" and "+" in views else []
                    if head == "lbfgs":
                        more = ["--grid", GRID if layers == "pooled" else WIDE_GRID]
                    fit(args, name, runs[head], head, *more)
                figures, cells = read(figures), []
                for folder in runs.values():
                    metrics = read(os.path.join(folder, "metrics.json"))
                    low, high = metrics["test"]["accuracy_interval"]
                    cells.append(f"{metrics['test']['accuracy']:.4f} ± {(high - low) / 2:.3f}, {fit_seconds(metrics):.1f} s")
                rows.append([side, layers, views, f"{metrics['features']:,}", f"{figures['seconds']:.1f} s", f"{figures['bytes'] / 1e9:.2f} GB", *cells])
                print(*rows[-1], sep=" | ", flush=True)
                if args.remove:
                    shutil.rmtree(name, ignore_errors=True)
    table(["side", "layers", "views", "features", "extraction", "store", *runs], rows)


main()
