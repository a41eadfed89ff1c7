"""Embeds images with Spark: two executors in processes of their own, one of which is killed in the middle where that is asked for.

usage: spark_job.py TLPIPE IMAGES OUT SIDE TASKS KILL     KILL is none, executor or filter
Prints seconds as JSON. That something was killed is checked, and that Spark noticed.
"""
import json
import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../integrations/pyspark"))
import tlpipe_spark
from pyspark.sql import SparkSession

tlpipe, images, out, side, tasks, kill = sys.argv[1:]
os.environ.update(PYSPARK_PYTHON=sys.executable, SPARK_WORKER_DIR=os.path.join(os.path.dirname(out), "work"))
started = time.monotonic()
session = (
    SparkSession.builder.master("local-cluster[2,1,1024]").appName("tlpipe").config("spark.ui.enabled", "false")
    .config("spark.sql.execution.arrow.maxRecordsPerBatch", "256").config("spark.driver.host", "127.0.0.1")
    .config("spark.executorEnv.PYTHONPATH", sys.path[0]).config("spark.executorEnv.TLPIPE_ASSETS", os.environ.get("TLPIPE_ASSETS", ""))
    .config("spark.task.maxFailures", "4").config("spark.local.dir", os.path.dirname(out)).getOrCreate()
)
context = session.sparkContext
context.setLogLevel("ERROR")


def processes(*words):
    """Those of this application whose command line has these words."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                line = file.read().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(entry))
    return found


def victims():
    if kill == "executor":
        return processes("CoarseGrainedExecutorBackend", context.applicationId)
    return processes(tlpipe, " embed ", mark)


killed, before = [], set()


def killer():
    tracker = context.statusTracker()
    while not killed:
        time.sleep(0.05)
        for stage in tracker.getActiveStageIds():
            info = tracker.getStageInfo(stage)
            # In the middle: some tasks are through, others are not.
            if info and info.numTasks == int(tasks) and info.numCompletedTasks >= 2 and (found := victims()):
                before.update(found)
                os.kill(found[0], signal.SIGKILL)
                killed.append((kill, info.numCompletedTasks))
                break


# Harmless, and tells this job's filters from others on the machine.
mark = f"--set=backbone.input_size={side}"
flags = ["--model", os.environ.get("TLPIPE_TEST_MODEL", "mobilenet_v2"), mark, "--threads", "1", "--offline"]
frame = session.read.parquet(images).repartition(int(tasks))
rows = tlpipe_spark.embed(frame, flags, program=tlpipe)
if kill != "none":
    threading.Thread(target=killer, daemon=True).start()
ready = time.monotonic()
rows.write.parquet(out)
done = time.monotonic()
failures = sum(info.numFailedTasks for stage in range(20) if (info := context.statusTracker().getStageInfo(stage)))
if kill != "none":
    assert killed, "nothing was killed"
    # A lost executor takes its shuffle files along: stages begin anew, and their last attempt may have no failed task.
    assert failures > 0 or kill == "executor" and set(victims()) - before, f"Spark noticed nothing of {killed}"
session.stop()
print(json.dumps({"start": round(ready - started, 2), "job": round(done - ready, 2), "killed": killed, "failed_tasks": failures}))
