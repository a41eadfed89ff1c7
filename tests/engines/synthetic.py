"""Rows as a cluster engine leaves them, of made-up features: for measuring tlpipe store adopt and fit-head.

usage: synthetic.py TLPIPE OUT ROWS FILES     needs numpy and pyarrow; the key is that of mobilenet_v2 at 96 px
"""
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

tlpipe, out, rows, files = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
child = subprocess.Popen([tlpipe, "embed", "--model", "mobilenet_v2", "--input-size", "96"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
schema = pa.ipc.open_stream(child.stdout).schema
child.kill()
width, classes = schema.field("embedding").type.list_size, 10
random = np.random.default_rng(0)
order = random.permutation(rows)
signal = random.normal(size=(classes, width)).astype(np.float32) * 0.2
for number, ids in enumerate(np.array_split(order, files)):
    with pq.ParquetWriter(f"{out}/{number:06}.parquet", schema) as writer:
        for ids in np.array_split(ids, max(1, len(ids) // 4096)):
            labels = ids * 2654435761 % 1000003 % classes
            values = np.maximum(random.standard_normal((len(ids), width), np.float32) + signal[labels], 0)
            columns = {
                "id": [f"images/{number:07}.png" for number in ids],
                "split": ["test" if number % 10 == 0 else "train" for number in ids],
                "label": labels,
                "class": [f"class-{label}" for label in labels],
                "content_hash": [f"{number:064x}" for number in ids],
                "width": np.full(len(ids), 32),
                "height": np.full(len(ids), 32),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field("embedding").type),
                "error": pa.nulls(len(ids), pa.string()),
            }
            writer.write_batch(pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema))
