#!/usr/bin/env python3
"""What the depths of a frozen network are worth: the table of docs/layers.md.

    python3 layers.py --tlpipe target/release/tlpipe --data cifar10 --folder /tmp/layers
    python3 layers.py ... --sides 96,160 --layers pooled,multi-all --views identity,identity+hflip --heads ridge

Each combination of side, layers and views is a feature store below --folder (CIFAR-10 at every size: some 60 GB; --remove deletes each
store once its heads are fitted), each head a run beside it. What is there already is not done again, so a stopped table goes on
with the same command. Heads: `adam` is the guide's recipe, `lbfgs` a sweep of six strengths of L2 and a last fit on all of train, `ridge`
chooses L2 on the hold-out and is fitted again on all of train; with two views `ridge` trains on each of them.
"""
import argparse, json, os, shutil, subprocess

HEADS = {
    "adam": ["--solver", "adam"],
    "lbfgs": ["--solver", "lbfgs", "--sweep", "--grid", "l2=1e-3,3e-3,1e-2,3e-2,1e-1,3e-1"],
    "ridge": ["--solver", "ridge", "--set", "head.refit=true", "--set", "head.keep_statistics=false"],
}


def run(*command):
    print("+", *command, flush=True)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def size(folder):
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)


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
    parser.add_argument("--remove", action="store_true", help="delete each store once its heads are fitted")
    args = parser.parse_args()
    table = []
    for side in args.sides.split(","):
        for layers in args.layers.split(","):
            for views in args.views.split(","):
                name = os.path.join(args.folder, f"{side}-{layers}-{views}")
                figures, runs = name + ".json", {head: f"{name}-{head}" for head in args.heads.split(",")}
                store = ["--features", name]
                missing = [head for head, folder in runs.items() if not os.path.exists(os.path.join(folder, "metrics.json"))]
                if missing or not os.path.exists(figures):
                    of = ["--data", args.data, "--model", args.model, "--input-size", side, "--layers", layers]
                    of += ["--views", views.replace("+", ","), "--dtype", "float16", *args.extract.split()]
                    found = run(args.tlpipe, "--json", "extract", *of, *store)
                    if not os.path.exists(figures):
                        with open(figures, "w") as file:
                            json.dump({"seconds": found["seconds"], "bytes": size(name)}, file)
                for head in missing:
                    augment = ["--set", "head.views=augment"] if head == "ridge" and "+" in views else []
                    run(args.tlpipe, "--json", "fit-head", *store, "--run", runs[head], *HEADS[head], *augment)
                figures = json.load(open(figures))
                for head, folder in runs.items():
                    metrics = json.load(open(os.path.join(folder, "metrics.json")))
                    test = metrics["test"]
                    low, high = test["accuracy_interval"]
                    table.append([side, layers, views, head, f"{metrics['features']:,}", f"{test['accuracy']:.4f}", f"{low:.3f} to {high:.3f}",
                                  f"{figures['seconds']:.1f} s", f"{metrics['fit_seconds']:.1f} s", f"{figures['bytes'] / 1e9:.2f} GB"])
                    print(*table[-1], sep=" | ", flush=True)
                if args.remove:
                    shutil.rmtree(name, ignore_errors=True)
    head = ["side", "layers", "views", "head", "features", "test accuracy", "95 %", "extraction", "fit", "store"]
    for row in [head, ["---"] * len(head), *table]:
        print("| " + " | ".join(row) + " |")


main()
