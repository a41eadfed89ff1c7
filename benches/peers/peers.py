#!/usr/bin/env python3
"""tlpipe beside what people use today: the same images, the same network, the same cores, one table.

    python3 peers.py --tlpipe target/release/tlpipe --images test.parquet --sides 96,224
    python3 peers.py --tlpipe target/release/tlpipe --images photos/ --repeat 20 --sides 224

`--images` is a Parquet file in the Hugging Face layout or a folder of photographs. Each round runs every peer once, one
after the other, and compares within the round; the table has the medians. A peer's clock starts when its network is loaded
and warm; tlpipe's is that of the whole process, start-up and writing of the features included.
"""
import argparse, glob, importlib, io, json, os, statistics, subprocess, sys, tempfile, time

THREADS = 2
BATCH = 16


def encoded(path, rows, repeat):
    """The encoded images: of a Parquet file, or of a folder."""
    if os.path.isdir(path):
        files = sorted(file for file in glob.glob(os.path.join(path, "**", "*"), recursive=True) if os.path.isfile(file))
        images = [open(file, "rb").read() for file in files]
    else:
        import pyarrow.parquet as pq
        table = pq.read_table(path)
        column = next(name for name in table.column_names if name in ("img", "image"))
        images = [row["bytes"] for row in table.column(column).to_pylist()]
    return (images * repeat)[:rows]


def write_source(images, folder):
    """The same images for tlpipe: one Parquet file."""
    import pyarrow as pa, pyarrow.parquet as pq
    column = pa.array([{"bytes": image, "path": None} for image in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    path = os.path.join(folder, "images.parquet")
    pq.write_table(pa.table({"image": column}), path, row_group_size=1000)
    return path


def pixels(image, side):
    from PIL import Image
    return Image.open(io.BytesIO(image)).convert("RGB").resize((side, side), Image.BILINEAR)


def python_loop(images, side, model):
    """onnxruntime and Pillow in line: one session of two threads, the loop that everyone writes."""
    import numpy as np, onnxruntime as ort
    session = session_of(ort, model, THREADS)
    name = session.get_inputs()[0].name
    def run(batch):
        stack = np.stack([np.asarray(pixels(image, side), np.float32) for image in batch]) / np.float32(127.5) - np.float32(1)
        return session.run(None, {name: stack})[0]
    run(images[:BATCH])
    yield
    for start in range(0, len(images), BATCH):
        run(images[start:start + BATCH])


def python_threads(images, side, model):
    """The same by two Python threads with a session of one thread each: both libraries release the interpreter."""
    import numpy as np, onnxruntime as ort
    from concurrent.futures import ThreadPoolExecutor
    sessions = [session_of(ort, model, 1) for _ in range(THREADS)]
    name = sessions[0].get_inputs()[0].name
    def part(worker):
        for start in range(worker * BATCH, len(images), THREADS * BATCH):
            batch = images[start:start + BATCH]
            stack = np.stack([np.asarray(pixels(image, side), np.float32) for image in batch]) / np.float32(127.5) - np.float32(1)
            sessions[worker].run(None, {name: stack})
    with ThreadPoolExecutor(THREADS) as pool:
        yield
        list(pool.map(part, range(THREADS)))


def session_of(ort, model, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def keras(images, side, model):
    """Keras' predict of MobileNetV2 without its top, fed by tf.data."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    network = tf.keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))
    def prepare(image):
        image = tf.io.decode_image(image, channels=3, expand_animations=False)
        return tf.image.resize(image, (side, side)) / 127.5 - 1.0
    data = tf.data.Dataset.from_tensor_slices(images).map(prepare, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)
    network.predict(data.take(2), verbose=0)
    yield
    network.predict(data, verbose=0)


class Photographs:
    """For PyTorch's DataLoader."""

    def __init__(self, images, side):
        self.images, self.side = images, side

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        import numpy as np, torch
        return torch.from_numpy(np.array(pixels(self.images[index], self.side))).permute(2, 0, 1).float().div_(127.5).sub_(1)


def pytorch(images, side, model):
    """torchvision's mobilenet_v2 without its classifier, DataLoader with two workers."""
    import torch, torchvision
    torch.set_num_threads(THREADS)
    network = torchvision.models.mobilenet_v2(weights=None).features.eval().to(memory_format=torch.channels_last)
    def run(data):
        with torch.inference_mode():
            for batch in torch.utils.data.DataLoader(data, batch_size=32, num_workers=2):
                network(batch.to(memory_format=torch.channels_last)).mean((2, 3))
    run(Photographs(images[:64], side))
    yield
    run(Photographs(images, side))


PEERS = {
    "onnxruntime + Pillow, in line": (python_loop, "onnxruntime"),
    "onnxruntime + Pillow, two Python threads": (python_threads, "onnxruntime"),
    "Keras predict, tf.data": (keras, "tensorflow"),
    "PyTorch, DataLoader": (pytorch, "torch"),
}


def peer(name, source, rows, repeat, side, model):
    """One run of one peer, in a process of its own: prints images a second."""
    images = encoded(source, rows, repeat)
    steps = PEERS[name][0](images, side, model)
    next(steps)
    started = time.perf_counter()
    next(steps, None)
    print(len(images) / (time.perf_counter() - started))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tlpipe", default="target/release/tlpipe")
    parser.add_argument("--images", required=True)
    parser.add_argument("--repeat", type=int, default=1, help="take a small folder so many times")
    parser.add_argument("--sides", default="96,224")
    parser.add_argument("--rows", type=int, default=4000, help="images at 96 pixels; fewer at larger sides, more at smaller")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.images, args.rows, args.repeat, int(args.sides), args.model)
    here = {name: importable(module) for name, (_, module) in PEERS.items()}
    with tempfile.TemporaryDirectory() as scratch:
        model = os.path.join(scratch, "cut.onnx")
        subprocess.run([args.tlpipe, "models", "cut", "mobilenet_v2", "-o", model], check=True, stdout=subprocess.DEVNULL)
        print("| side | what | images a second | tlpipe is |\n|---|---|---|---|")
        for side in map(int, args.sides.split(",")):
            rows = max(400, int(args.rows * (96 / side) ** 2))
            source = write_source(encoded(args.images, rows, args.repeat), scratch)
            rates = {name: [] for name in ["tlpipe", *PEERS]}
            for _ in range(args.rounds):
                rates["tlpipe"].append(tlpipe(args.tlpipe, source, side, scratch))
                for name in PEERS:
                    if here[name]:
                        rates[name].append(other(name, args, rows, side, model))
            print(f"| {side} | tlpipe extract | {statistics.median(rates['tlpipe']):.0f} | |")
            for name in PEERS:
                if not here[name]:
                    print(f"| {side} | {name} | not installed | |")
                    continue
                ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["tlpipe"], rates[name]))
                print(f"| {side} | {name} | {statistics.median(rates[name]):.0f} | {ratio:.2f} x |", flush=True)


def importable(module):
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def tlpipe(binary, source, side, scratch):
    features = tempfile.mkdtemp(dir=scratch)
    command = [binary, "extract", "--data", source, "--model", "mobilenet_v2", "--input-size", str(side), "--features", features]
    command += ["--threads", str(THREADS), "--rebuild", "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return rows["images_per_second"]


def other(name, args, rows, side, model):
    command = [sys.executable, __file__, "--peer", name, "--images", args.images, "--rows", str(rows)]
    command += ["--repeat", str(args.repeat), "--sides", str(side), "--model", model]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{name}: {ran.stderr.strip().splitlines()[-1]}")
    return float(ran.stdout.split()[-1])


if __name__ == "__main__":
    main()
