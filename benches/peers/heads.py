#!/usr/bin/env python3
"""The fit of a head by tlpipe, Keras, PyTorch and scikit-learn: the same features, the same cores, one table.

    python3 heads.py --tlpipe target/release/tlpipe --features features/cifar10-96
    python3 heads.py --features features/cifar10-96 --rounds 5 --batches 32 --only keras,pytorch

`--features` is a feature store; of its `train` split the first 80 % train and the rest is scored after every epoch, by all.
Each round runs every peer once, one after the other, and compares within the round; the table has the medians. A peer's clock
runs while it fits: features in memory, modules loaded, Keras' graph compiled. tlpipe's is `fit_seconds` of metrics.json; the
last column has the whole process: start, reading of the features, fit, scores of all splits, files written.
"""
import argparse, glob, json, os, statistics, subprocess, sys, tempfile, time

from peers import THREADS, importable

EPOCHS = 10
L2 = 1e-2


def features(store):
    """Features and labels of `train`: those to train on, then those held out."""
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    files = sorted(glob.glob(os.path.join(store, "train", "part-*.parquet")))
    table = pa.concat_tables(pq.read_table(file, columns=["embedding", "label"]) for file in files).combine_chunks()
    column = table["embedding"].chunk(0)
    x = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    y = table["label"].to_numpy().astype(np.int64)
    rows = int(len(x) * 0.8)
    return x[:rows], y[:rows], x[rows:], y[rows:]


def keras(store, batch):
    """Keras' fit, as in the guide."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    x, y, held, answers = features(store)
    model = tf.keras.Sequential([tf.keras.Input((x.shape[1],)), tf.keras.layers.Dense(int(y.max()) + 1, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    weights = model.get_weights()
    model.fit(x[:2 * batch], y[:2 * batch], batch_size=batch, validation_data=(held[:batch], answers[:batch]), verbose=0)
    model.set_weights(weights)
    yield
    history = model.fit(x, y, batch_size=batch, epochs=EPOCHS, validation_data=(held, answers), verbose=0)
    yield history.history["val_accuracy"][-1]


def pytorch(store, batch):
    """The plain loop: tensors in memory, batches by index, the fused Adam."""
    import torch
    from torch.nn.functional import cross_entropy
    torch.set_num_threads(THREADS)
    x, y, held, answers = map(torch.from_numpy, map(writable, features(store)))
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)
    def step(rows):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    for _ in range(20):
        step(torch.arange(batch))
    yield
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(batch):
            step(rows)
        with torch.inference_mode():
            logits = model(held)
            cross_entropy(logits, answers).item()
            accuracy = (logits.argmax(1) == answers).float().mean().item()
    yield accuracy


def writable(array):
    return array if array.flags.writeable else array.copy()


def scikit(store, _):
    """LogisticRegression by L-BFGS on standardized features, as strong an L2 as tlpipe's lbfgs has."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    x, y, held, answers = features(store)
    yield
    scaler = StandardScaler()
    model = LogisticRegression(C=1 / (L2 * len(x)), tol=1e-4, max_iter=1000).fit(scaler.fit_transform(x), y)
    yield model.score(scaler.transform(held), answers)


PEERS = {"keras": ("Keras fit", keras, "tensorflow"), "pytorch": ("PyTorch, plain loop, fused Adam", pytorch, "torch"),
         "scikit": ("scikit-learn LogisticRegression, lbfgs", scikit, "sklearn")}


def peer(name, store, batch):
    """One fit of one peer, in a process of its own: prints seconds and hold-out accuracy."""
    steps = PEERS[name][1](store, batch)
    next(steps)
    started = time.perf_counter()
    accuracy = next(steps)
    print(time.perf_counter() - started, accuracy)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tlpipe", default="target/release/tlpipe")
    parser.add_argument("--features", required=True)
    parser.add_argument("--batches", default="32,256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PEERS), help="peers to run")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.features, int(args.batches))
    only = args.only.split(",")
    print("| what | solver, rows a step | fit, s | tlpipe is | hold-out accuracy | whole process, s |\n|---|---|---|---|---|---|")
    minibatch = [name for name in ("keras", "pytorch") if name in only]
    for batch in map(int, args.batches.split(",") if minibatch else []):
        table(f"adam, {batch}", args, minibatch, batch, ["--batch-size", str(batch)])
    lbfgs = ["--solver", "lbfgs", "--set", f"head.l2={L2}"]
    if "scikit" in only and tlpipe(args, lbfgs) is not None:
        table("lbfgs", args, ["scikit"], 0, lbfgs)


def table(label, args, names, batch, flags):
    """Rounds of tlpipe and these peers, as rows of the table."""
    here = {name: importable(PEERS[name][2]) for name in names}
    runs = {name: [] for name in ["tlpipe", *names]}
    for _ in range(args.rounds):
        ours = tlpipe(args, flags)
        if ours is None:
            sys.exit(f"{args.tlpipe} fit-head {' '.join(flags)} failed; run it by itself to see why")
        runs["tlpipe"].append(ours)
        for name in names:
            if here[name]:
                runs[name].append(other(name, args, batch))
    median = lambda name, place: statistics.median(run[place] for run in runs[name])
    print(f"| tlpipe fit-head | {label} | {median('tlpipe', 0):.2f} | | {median('tlpipe', 1):.4f} | {median('tlpipe', 2):.2f} |")
    for name in names:
        what = PEERS[name][0]
        if not here[name]:
            print(f"| {what} | {label} | not installed | | | |")
            continue
        ratio = statistics.median(theirs[0] / ours[0] for ours, theirs in zip(runs["tlpipe"], runs[name]))
        print(f"| {what} | {label} | {median(name, 0):.2f} | {ratio:.1f} x | {median(name, 1):.4f} | |", flush=True)


def tlpipe(args, flags):
    """Seconds of the fit, hold-out accuracy, seconds of the process; none where tlpipe refuses."""
    with tempfile.TemporaryDirectory() as run:
        command = [args.tlpipe, "fit-head", "--features", args.features, "--run", run, "--split", "tail", "--epochs", str(EPOCHS)]
        command += [*flags, "--threads", str(THREADS), "--json", "--quiet"]
        started = time.perf_counter()
        ran = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if ran.returncode != 0:
            return None
        metrics = json.loads(ran.stdout)
        return metrics["fit_seconds"], metrics["validation"]["accuracy"], seconds


def other(name, args, batch):
    command = [sys.executable, __file__, "--peer", name, "--features", args.features, "--batches", str(batch)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{name}: {ran.stderr.strip().splitlines()[-1]}")
    return tuple(map(float, ran.stdout.split()[-2:]))


if __name__ == "__main__":
    main()
