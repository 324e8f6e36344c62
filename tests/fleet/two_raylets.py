"""A Ray cluster of two nodes on this machine, until stdin ends; prints its address and processes as JSON."""

import json
import sys

from ray.cluster_utils import Cluster

MEMORY = {"object_store_memory": 100 << 20}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **MEMORY})
    nodes = [cluster.head_node, cluster.add_node(num_cpus=1, **MEMORY)]
    cluster.wait_for_nodes()
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    gcs = nodes[0].all_processes["gcs_server"][0].process.pid
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets, "gcs": gcs}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()
