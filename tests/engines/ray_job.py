"""Embeds images with Ray Data: two nodes on one machine, one of which is killed in the middle where that is asked for.

usage: ray_job.py TLPIPE IMAGES OUT SIDE ROWS KILL     KILL is none, node or filter
Prints seconds as JSON. That something was killed is checked.
"""
import glob
import json
import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../integrations/ray"))
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DATA_DISABLE_PROGRESS_BARS="1", PYTHONPATH=sys.path[0])
import ray
import tlpipe_ray
from ray.cluster_utils import Cluster

tlpipe, images, out, side, expected, kill = sys.argv[1:]
started = time.monotonic()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 300 << 20, "include_dashboard": False})
second = cluster.add_node(num_cpus=3, object_store_memory=300 << 20)
ray.init(address=cluster.address, log_to_driver=False)
assert len([node for node in ray.nodes() if node["Alive"]]) == 2

killed = []


def written():
    return len(glob.glob(f"{out}/**/*.parquet", recursive=True))


def children(pid):
    """Processes below this one."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parents.setdefault(int(file.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
        except OSError:
            continue
    found, rest = [], [pid]
    while rest:
        more = parents.get(rest.pop(), [])
        found += more
        rest += more
    return found


def name(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def killer():
    [raylet] = [info.process for info in second.all_processes["raylet"]]
    # In the middle: something is written, and something is not.
    while written() < 2:
        time.sleep(0.05)
    if kill == "filter":
        filters = []
        while not filters:
            nodes = [cluster.head_node, second]
            below = [pid for node in nodes for info in node.all_processes["raylet"] for pid in children(info.process.pid)]
            filters = [pid for pid in below if f"{tlpipe} embed" in name(pid)]
        os.kill(filters[0], signal.SIGKILL)
        killed.append(["filter", written()])
        return
    filters = [pid for pid in children(raylet.pid) if f"{tlpipe} embed" in name(pid)]
    for pid in [raylet.pid] + children(raylet.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert raylet.wait(10) == -signal.SIGKILL
    killed.append(["node", written(), len(filters)])


flags = ["--model", os.environ.get("TLPIPE_TEST_MODEL", "mobilenet_v2"), "--input-size", side, "--offline"]
rows = tlpipe_ray.embed(ray.data.read_parquet(images), flags, actors=2, blocks=16, program=tlpipe)
if kill != "none":
    threading.Thread(target=killer, daemon=True).start()
ready = time.monotonic()
tlpipe_ray.write(rows, out, expected=int(expected), stall_seconds=120)
done = time.monotonic()
if kill != "none":
    assert killed, "nothing was killed"
alive = len([node for node in ray.nodes() if node["Alive"]])
assert alive == (1 if kill == "node" else 2), f"{alive} nodes are left"
ray.shutdown()
cluster.shutdown()
print(json.dumps({"start": round(ready - started, 2), "job": round(done - ready, 2), "killed": killed}))
