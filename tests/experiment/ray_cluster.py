"""A Ray cluster of two machines' worth of workers on this machine: prints its address, and ends with its standard input."""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    # the head takes no trial; each of the two others has one CPU, hence one worker
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
