"""tlpipe embed as a step of a Ray Data job; what it writes becomes a feature store by `tlpipe store adopt`.

    rows = embed(images, ["--model", "mobilenet_v2", "--input-size", "96"], actors=4)
    write(rows, "out", expected=60_000)          # then: tlpipe store adopt out --expect-rows 60000

`images` has the columns id and bytes, and label, class, split where they are known; others are handed on. An actor holds one filter.
With too few CPUs Ray Data waits for ever and says nothing, also after a node was lost, and leaves files that do not show that they are
a part. So: at most as many actors as the CPUs of the smallest cluster that must get through, less one; `write` gives up where
nothing moves; and the number of rows is known beforehand.
"""
import os
import subprocess
import tempfile
import threading
import time

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

DIED = (pa.ArrowInvalid, OSError, StopIteration)


class Filter:
    """An actor: one tlpipe embed, started anew once where it dies."""

    def __init__(self, flags, program, threads, batch_rows):
        self.command = [program, "embed", *flags, "--threads", str(threads)]
        self.batch_rows, self.child = batch_rows, None

    def __call__(self, table):
        try:
            return self.answer(table)
        except DIED as error:
            first = self.close()
            try:
                return self.answer(table)
            except DIED:
                raise RuntimeError(f"tlpipe embed died twice on the same images: {first} {self.close()}") from error

    def start(self, schema):
        self.said, self.schema = tempfile.TemporaryFile(), schema
        self.child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said)
        self.stream = pa.ipc.open_stream(self.child.stdout)
        self.writer = pa.ipc.new_stream(self.child.stdin, schema)

    def close(self):
        """Ends the filter; the last that it said."""
        if self.child is None:
            return ""
        self.child.kill()
        status, self.child = self.child.wait(), None
        self.said.seek(-min(2000, self.said.seek(0, 2)), 2)
        return f"status {status}: {self.said.read().decode(errors='replace')}"

    def answer(self, table):
        wanted = [name for name in ("id", "bytes", "label", "class", "split") if name in table.column_names]
        images = table.select(wanted).combine_chunks()
        if self.child is None or images.schema.remove_metadata() != self.schema.remove_metadata():
            self.close()
            self.start(images.schema)
        batches, failed = images.to_batches(self.batch_rows), []

        def write():
            try:
                for batch in batches:
                    self.writer.write_batch(batch)
                    self.child.stdin.flush()
            except OSError as error:  # The other side died: reading says so too.
                failed.append(error)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        answers = [self.stream.read_next_batch() for _ in batches]
        thread.join()
        answer = pa.Table.from_batches(answers, self.stream.schema)
        if failed or answer.num_rows != table.num_rows:
            raise OSError(f"{answer.num_rows} of {table.num_rows} rows came back")
        for name in table.column_names:
            if name not in answer.column_names + ["bytes"]:
                answer = answer.append_column(table.schema.field(name), table[name])
        return answer

    def __del__(self):
        self.close()


def embed(images, flags, actors, threads=1, gpus=0, blocks=None, program="tlpipe", batch_rows=256):
    """The rows of the feature store for a dataset of images; `flags` are those of tlpipe embed. A filter a GPU where `gpus` is 1."""
    import ray.data

    # Without it Ray fuses small inputs into one block, and one actor does everything.
    images = images.repartition(blocks or 8 * actors)
    return images.map_batches(
        Filter, fn_constructor_args=(list(flags), program, threads, batch_rows), batch_format="pyarrow", batch_size=None,
        zero_copy_batch=True, compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=threads, num_gpus=gpus,
    )


def write(rows, path, expected, stall_seconds=300):
    """Writes Parquet; an error where nothing moves for so long, or another number of rows was written than went in."""
    system, folder = pa.fs.FileSystem.from_uri(path if "://" in path else f"file://{os.path.abspath(path)}")
    result = []

    def job():
        try:
            result.append(rows.write_parquet(path))
        except BaseException as error:
            result.append(error)

    threading.Thread(target=job, daemon=True).start()
    moved, before = time.monotonic(), None
    while not result:
        time.sleep(0.2)
        files = system.get_file_info(pa.fs.FileSelector(folder, recursive=True, allow_not_found=True))
        if (now := [(file.path, file.size) for file in files]) != before:
            moved, before = time.monotonic(), now
        if time.monotonic() - moved > stall_seconds:
            raise TimeoutError(f"Ray wrote nothing to {path} for {stall_seconds} s: too few CPUs for its actors?")
    if result[0] is not None:
        raise result[0]
    count = pa.dataset.dataset(folder, filesystem=system, format="parquet").count_rows()
    if count != expected:
        raise RuntimeError(f"{count} rows in {path}, and {expected} images went in")
