"""Results that were ready on a worker that is gone: the run ends, it does not wait for ever."""

import os
import time

import pytest

from sdm.engine import tasks
from sdm.errors import ClusterError


def _pid(item):
    return os.getpid()


@pytest.mark.slow
def test_results_that_went_with_the_last_worker_are_given_up():
    from distributed import Client, LocalCluster

    quiet = {"protocol": "tcp://", "silence_logs": 50, "dashboard_address": None, "worker_dashboard_address": None}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **quiet) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(_pid, 0)
        assert future.result() == os.getpid()
        cluster.scale(0)
        while client.nthreads():
            time.sleep(0.05)
        with pytest.raises(ClusterError, match=r"has had no worker for 1 s"):
            tasks._gathered(client, [future], worker_wait=1.0)
