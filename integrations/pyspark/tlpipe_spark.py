"""tlpipe embed as a step of a PySpark job; what it writes becomes a feature store by `tlpipe store adopt`.

    rows = embed(images, ["--model", "mobilenet_v2", "--input-size", "96"])
    rows.write.parquet("out")           # then: tlpipe store adopt out

`images` has the columns id and bytes, and label, class, split where they are known; others are handed on. Each task starts a filter
of its own and loads the model anew, so few long tasks are better than many short ones: images.repartition(n) with n about the number
of executor cores. `tlpipe` and this file must be on every executor (spark-submit --py-files, --files, or an image).
"""
import itertools
import os
import queue
import subprocess
import tempfile
import threading

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StringType, StructField, StructType

NAMED = ["id", "split", "label", "class", "content_hash", "width", "height", "error", "tlpipe_key", "tlpipe_provenance"]


def embed(images, flags, views=("identity",), program="tlpipe", batch_rows=256):
    """The rows of the feature store for a DataFrame of images; `flags` are those of tlpipe embed, `views` those of its --views."""
    integers = ("label", "width", "height")
    embeddings = ["embedding" if view == "identity" else "embedding_" + view.replace("-", "_") for view in views]
    fields = [StructField(name, IntegerType() if name in integers else StringType()) for name in NAMED]
    # Spark knows no lists of fixed length; adopt makes them such again.
    fields += [StructField(name, ArrayType(FloatType())) for name in embeddings]
    names = [field.name for field in fields]
    extra = [field for field in images.schema if field.name not in names + ["bytes"]]
    schema = StructType(fields + extra)
    command = [program, "embed", *flags] + (["--views", ",".join(views)] if len(views) > 1 else [])

    def run(batches):
        return answers(batches, command, names, [field.name for field in extra], batch_rows)

    return images.mapInArrow(run, schema)


def answers(batches, command, names, extra, batch_rows):
    """Sends batches through a filter; every row must come back, and the filter must say that it saw the end."""
    batches = (batch.slice(at, batch_rows) for batch in batches for at in range(0, batch.num_rows, batch_rows))
    first = next(batches, None)
    if first is None:  # An empty task needs no filter.
        return
    task, environment = TaskContext.get(), dict(os.environ)
    if "gpu" in task.resources():
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(task.resources()["gpu"].addresses)
    if "--threads" not in command:
        command = command + ["--threads", str(task.cpus())]
    wanted = [name for name in ("id", "bytes", "label", "class", "split") if name in first.schema.names]
    said, kept, sent, failed = tempfile.TemporaryFile(), queue.SimpleQueue(), [], []
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment)

    def write():
        try:
            writer = pa.ipc.new_stream(child.stdin, first.select(wanted).schema)
            for batch in itertools.chain([first], batches):
                kept.put([batch.column(name) for name in extra])
                sent.append(batch.num_rows)
                writer.write_batch(batch.select(wanted))
                child.stdin.flush()
            writer.close()  # The end marker: only where all was sent.
        except BrokenPipeError:
            pass  # Its status says why.
        except BaseException as error:
            failed.append(error)
        finally:
            try:
                child.stdin.close()
            except BrokenPipeError:
                pass

    thread, rows = threading.Thread(target=write, daemon=True), 0
    try:
        thread.start()
        try:
            stream = pa.ipc.open_stream(child.stdout)
            about = {name: stream.schema.metadata[name.replace("_", ".").encode()].decode() for name in NAMED[-2:]}
            for batch in stream:
                count = batch.num_rows
                columns = {name: batch.column(name) for name in batch.schema.names}
                columns["tlpipe_key"] = pa.array([about["tlpipe_key"]] * count, pa.string())
                columns["tlpipe_provenance"] = pa.array([about["tlpipe_provenance"]] * (rows == 0) + [None] * (count - (rows == 0)), pa.string())
                columns = [c.cast(pa.list_(pa.float32())) if pa.types.is_fixed_size_list(c.type) else c for c in map(columns.get, names)]
                rows += count
                yield pa.RecordBatch.from_arrays(columns + kept.get(), names + extra)
        except (pa.ArrowInvalid, OSError) as error:
            failed.append(error)
        status = child.wait()
        if status != 0 or rows != sum(sent) or failed:
            said.seek(-min(2000, said.tell()), os.SEEK_END)
            text = f"tlpipe embed: status {status}, {rows} of {sum(sent)} rows: {said.read().decode(errors='replace')}"
            raise RuntimeError(text) from (failed[0] if failed else None)
    finally:
        child.kill()
        child.wait()

