"""A Ray cluster of two nodes runs a suite; one of them is killed in the middle of its run."""

import os
import re
import sys
from importlib.util import find_spec
from threading import Thread
from time import monotonic, sleep

import pytest

from kdkit.bench.engines import on_ray
from kdkit.bench.rows import read_rows
from kdkit.bench.run import run_suite
from kdkit.bench.suite import load_suite
from kdkit.registry import KdkitError
from tests.bench.grid import TINY, write
from tests.cli.command import refused

RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'kdkit[ray]'")
NIGHTLY = pytest.mark.skipif("KDKIT_NIGHTLY" not in os.environ, reason="a minute of a cluster: set KDKIT_NIGHTLY=1")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one CPU each, as two sets of Ray's own processes."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    quick = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
    made.other = made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()


@RAY
@NIGHTLY
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_lost_nodes_run_is_taken_up_from_its_checkpoint(tmp_path, cluster):
    text = TINY.replace("[student, kd]", "[student]").replace("_epochs=2", "_epochs=40")
    text = text.replace("teacher: resnet8", "teacher: {arch: resnet8, weights: pretrained.pth}")
    (tmp_path / "pretrained.pth").touch()
    suite, rows, out = load_suite(write(tmp_path, text)), tmp_path / "rows.jsonl", tmp_path / "out"
    lost = []

    def kill():
        end = monotonic() + 60
        while monotonic() < end and not lost:
            for log in (out / "logs").glob("*.txt"):
                begun = (out / log.stem / "checkpoints" / "last.ckpt").exists()
                if begun and f"node {cluster.other.node_id}" in log.read_text():
                    lost.append(log)
                    cluster.remove_node(cluster.other, allow_graceful=False)
            sleep(0.05)

    killer = Thread(target=kill)
    killer.start()
    told = []
    engine = on_ray.OnRay(cluster.address, 0, 1, out)
    assert engine.width == 2
    outcome = run_suite(suite, out, rows, hours=None, engine=engine, tell=told.append)
    engine.close()
    killer.join()
    assert (outcome.done, outcome.failed, outcome.left) == (2, {}, 0), told
    (log,) = lost
    nodes = re.findall(r"node (\w+)", log.read_text())
    assert len(set(nodes)) == 2, "the run was taken up by the other node"
    (row,) = [row for row in read_rows(rows) if f"seed{row['seed']}-" in log.stem]
    assert row["resumed"]
    assert "going on with" in log.read_text()
    assert not list(out.glob(".kdkit.shared-*"))


def test_without_ray_one_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    write(tmp_path)
    assert "--engine ray needs Ray; pip install 'kdkit[ray]'" in refused("bench", "suite.yaml", "--engine", "ray")


@RAY
def test_a_head_that_is_not_there_is_one_error_at_once(tmp_path):
    write(tmp_path)
    err = refused("bench", "suite.yaml", "--engine", "ray", "--address", "127.0.0.1:9")
    assert "no Ray cluster at 127.0.0.1:9: [Errno" in err
    assert "`ray start --head` begins one" in err


def test_a_node_without_the_shared_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    word, why = on_ray._task(b"", {}, str(tmp_path), [str(tmp_path), str(tmp_path / "nowhere" / "mark")])
    assert word == "failed"
    assert f"does not see {tmp_path / 'nowhere'}; give a folder that all nodes share in KDKIT_HOME" in why


class FakeRay:
    """A cluster as its head tells it."""

    def __init__(self, *nodes):
        self.all = [{"Alive": cpus > 0, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"GPU": sum(node["Resources"]["GPU"] for node in self.all)}

    def nodes(self):
        return self.all

    def remote(self, **options):
        self.options = options
        return lambda task: task


def test_shares_of_gpus_say_how_many_runs_there_is_room_for(tmp_path, monkeypatch):
    """No run is spread over two nodes, and a dead node holds none."""
    ray = FakeRay((16, 2), (3, 1), (0, 8))
    monkeypatch.setitem(sys.modules, "ray", ray)

    def width(gpus, cpus):
        engine = on_ray.OnRay(None, gpus, cpus, tmp_path)
        engine.close()
        return engine.room()

    assert width(None, 1) == 3
    assert ray.options["num_gpus"] == 1
    assert width(0.25, 1) == 8 + 3
    assert width(0.1, 4) == 4
    assert width(0, 2) == 8 + 1
    assert not list(tmp_path.glob(".kdkit.shared-*"))
    with pytest.raises(KdkitError, match="no node of the Ray cluster has 32 CPUs and 1 GPUs for a run"):
        width(1, 32)
