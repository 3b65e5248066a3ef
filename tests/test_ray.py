"""Audits and studies on Ray: the same bytes as one process, whatever is killed; errors as they are without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import fact_rows
from foreknow.config import AuditConfig
from foreknow.distributed.ray_cluster import Cluster, _check_answers, _mute, _sigterm_kept
from foreknow.distributed.ray_errors import error_from_dict, error_to_dict
from foreknow.distributed.ray_resources import (
    RayNode,
    WorkerSpec,
    fit_workers,
    limit_workers,
    worker_capacity,
    worker_spec,
)
from foreknow.errors import (
    ConfigError,
    ForeknowError,
    InputError,
    MissingExtra,
    ModelError,
    NotFinite,
    ResourceError,
)
from foreknow.models import loading
from foreknow.models.fluency import fluency_of
from foreknow.prompts.few_shot import TooFewExemplars
from foreknow.settings import settings_of
from foreknow.stages.audit import ray_executor
from foreknow.stages.audit import run as audit_run
from foreknow.stages.audit.estimate import estimate
from foreknow.stages.remedies.result import open_remedies
from foreknow.stages.study.ray_executor import _sees
from foreknow.stages.study.result import open_study
from foreknow.stages.study.settings import StudyConfig

Start = Callable[..., subprocess.Popen[str]]
SAME = ("rows.parquet", "probes.parquet", "exemplars.json")
NAMES = ("ray::MapWorker", "raylet", "gcs_server")


@pytest.fixture(scope="module")
def settings(facts_file: Path, tiny_folder: Path) -> dict[str, Any]:
    """48 rows in 48 chunks: time enough to kill something."""
    return {
        "data": str(facts_file), "model": str(tiny_folder), "dtype": "float32", "device": "cpu", "exemplar_sets": 6,
        "chunk_rows": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def calm(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same audit by one process that nobody disturbs."""
    torch.set_num_threads(1)
    return audit_run.run(settings_of(AuditConfig, {**settings, "out": tmp_path_factory.mktemp("ray") / "calm"})).folder


@pytest.fixture
def start(settings: dict[str, Any]) -> Any:
    """Begin an audit in a process of its own; none outlives the test."""
    begun = []

    def begin(out: Path, *flags: str, **more: Any) -> subprocess.Popen[str]:
        file = written({**settings, **more}, out)
        command = [sys.executable, "-m", "foreknow", "audit", "--config", str(file), "--out", str(out), *flags]
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()
        process.stderr.close()


def written(settings: dict[str, Any], out: Path) -> Path:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def until_kept(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait for so many finished chunks of a run that goes on."""
    while len(list((out / ".chunks").glob("*.cost.parquet"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's processes that compute or rule, under a run."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
            if one.name().startswith(NAMES):
                found.append(one)
    return found


def stopped_at_work(process: subprocess.Popen[str]) -> psutil.Process:
    """A worker held still in the middle of a chunk: Ray names a worker's process after what it runs."""
    while True:
        for worker in family(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                if not worker.name().startswith("ray::MapWorker"):
                    continue
                worker.suspend()
                if "submit" in " ".join(worker.cmdline()):
                    return worker
                worker.resume()
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def all_ended(processes: list[psutil.Process], seconds: float = 30) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def told_by(process: subprocess.Popen[str], code: int = 0) -> str:
    said = process.communicate(timeout=240)[1]
    assert process.returncode == code, said
    return said


def assert_same(found: Path, calm: Path) -> None:
    for name in SAME:
        assert (found / name).read_bytes() == (calm / name).read_bytes(), name
    lines = [json.loads((folder / "manifest.json").read_text())["rows"] for folder in (found, calm)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_two_workers_one_of_them_killed_give_the_bytes_of_one_process(start: Start, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    process = start(out, "--ray", "--ray-workers", "2")
    stopped_at_work(process).kill()
    said = told_by(process)
    assert "2 workers with 1 thread each, on this machine" in said
    assert "a Ray worker was lost (killed, or out of memory): started again, with its chunk" in said
    assert "Traceback" not in said
    assert_same(out, calm)
    (way,) = json.loads((out / "manifest.json").read_text())["computed"]
    assert (way["workers"], way["threads"], way["chunks"]) == (2, 1, 48)
    speaks, alone = (json.loads((at / "summary.json").read_text())["model"]["fluency"] for at in (out, calm))
    assert speaks == alone
    assert said.count(f"warning: {alone['warning']}") == 1, "said once, whatever number of workers"


def test_whether_a_model_speaks_is_asked_of_a_worker_where_every_chunk_is_finished(
    settings: dict[str, Any], tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    work = partial(ray_executor._fluency, fingerprint=loaded.fingerprint)
    found = ray_executor._once(work, {**settings, "base": None, "exemplar_sets": 2}, 1)
    expected = fluency_of(loaded.model, loaded.tokenizer)
    assert found == ([f"warning: {expected.warning}"], expected.summary)
    assert "warning" not in capfd.readouterr().err, "it is for the driver to say"


def test_nothing_is_measured_on_a_node_with_other_files(settings: dict[str, Any]) -> None:
    nothing: Any = None
    compare = partial(ray_executor._compare, plan=nothing, probes=nothing, dtype="bfloat16")
    for work in (ray_executor._fluency, compare):
        with pytest.raises(ModelError, match="found other files on a node of the Ray cluster"):
            ray_executor._once(partial(work, fingerprint="sha256:another"), settings, 1)


def test_killed_on_ray_it_is_ended_by_one_process(
    start: Start, settings: dict[str, Any], calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ended"
    process = start(out, "--ray", "--ray-workers", "1")
    until_kept(out, 3, process)
    ray = family(process)
    assert {one.name() for one in ray} >= {"raylet", "gcs_server"}
    assert loopback_only(ray)
    process.kill()
    process.wait()
    assert all_ended(ray)

    audit_run.run(settings_of(AuditConfig, {**settings, "out": out}))
    assert "of 48 chunks are finished; going on" in capsys.readouterr().err
    assert_same(out, calm)
    here, there = json.loads((out / "manifest.json").read_text())["computed"]
    assert (here["ray"], here["workers"], there["workers"]) == (None, 1, 1)
    assert here["chunks"] + there["chunks"] == 48
    assert there["chunks"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_begun_by_one_process_and_interrupted_on_ray_it_ends_in_the_same_bytes(
    start: Start, calm: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "begun"
    first = start(out)
    until_kept(out, 3, first)
    first.kill()
    first.wait()

    second = start(out, "--ray", "--ray-workers", "2")
    until_kept(out, 8, second)
    ray = family(second)
    os.killpg(second.pid, number)
    _, said = second.communicate(timeout=120)
    # where Ray's core finds its raylet struck too, it may end the process first, without a word
    assert second.returncode in (code, 1), said
    assert second.returncode == 1 or said.endswith("foreknow: interrupted; the same command goes on from here\n")
    assert "Traceback" not in said
    assert "***" not in said
    assert all_ended(ray)

    told_by(start(out, "--ray", "--ray-workers", "2"))
    assert_same(out, calm)


def loopback_only(processes: list[psutil.Process]) -> bool:
    heard = [c.laddr.ip for one in processes for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return bool(heard) and all(ip.removeprefix("::ffff:").startswith("127.") for ip in heard)


@pytest.mark.slow
def test_a_workers_error_is_told_as_it_is_without_ray(
    start: Start, settings: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]  # which the driver, who loads no weights, does not see
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the checkpoint lacks 1 tensor of the model") as expected:
        loading.load_model(str(broken), dtype="float32")
    said = told_by(start(tmp_path / "out", "--ray", "--ray-workers", "1", model=str(broken)), 2)
    assert said.strip().endswith(f"foreknow: {expected.value}")
    assert "Traceback" not in said


DEADLY = """
import os, signal, sys
from foreknow import cli
from foreknow.stages.audit import ray_executor

class Deadly(ray_executor.Worker):
    def _run_chunk(self, number, rows):
        if number == 5:
            self.work = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return super()._run_chunk(number, rows)

ray_executor.Worker = Deadly
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_chunk_that_always_ends_its_worker_is_given_up_and_the_others_are_kept(
    settings: dict[str, Any], calm: Path, tmp_path: Path
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    out = tmp_path / "out"
    flags = ["audit", "--config", str(written(settings, out)), "--out", str(out), "--ray", "--ray-workers", "2"]
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "deadly.py"), *flags],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("foreknow: chunk 5 ended its Ray worker 3 times: out of memory?")
    assert len(list((out / ".chunks").glob("*.cost.parquet"))) > 5
    assert not list((out / ".chunks").glob("000005.*.cost.parquet"))
    audit_run.run(settings_of(AuditConfig, {**settings, "out": out}))
    assert_same(out, calm)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three nodes of a core each, simulated on this machine by Ray's own test cluster."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    head = {**small, "include_dashboard": False, "_system_config": quick}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.nodes = [made.add_node(**small), made.add_node(**small)]
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_ends_in_the_same_bytes(
    cluster: Any, start: Start, calm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "three"
    process = start(out, "--ray-address", cluster.address, "--ray-workers", "3")
    until_kept(out, 4, process)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    said = told_by(process)
    assert f"3 workers with 1 thread each, on {cluster.address}" in said
    assert "a node of the Ray cluster was lost: 2 of 3 are left" in said
    assert "going on with 2 workers with 1 thread each" in said
    assert_same(out, calm)


@pytest.mark.slow
def test_a_study_on_a_cluster_measures_what_one_process_does(
    cluster: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    splits = ("train", "train", "train", "dev", "test", "train", "test", "train")
    rows = [{**row, "split": splits[n % 8]} for n, row in enumerate(fact_rows())]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    study = {
        "data": "rows.jsonl", "model": settings["model"], "unknown": [0.5], "known": False, "only": [],
        "natural": False, "idk": [], "fixed_epochs": [1], "size": 4, "p_true": False, "seeds": 3,
        "audit": {"exemplar_sets": 2, "shots": 2, "dtype": "float32", "device": "cpu"},
        "tune": {
            "epochs": 6, "learning_rate": 3e-4, "batch_size": 4, "prompt_template": str(template), "dtype": "float32",
            "device": "cpu",
        },
    }  # fmt: skip
    file = written(study, tmp_path / "study")
    command = [sys.executable, "-m", "foreknow", "study", str(file), "--out"]
    subprocess.run([*command, "one"], env=environment(), check=True, capture_output=True, cwd=tmp_path)
    process = subprocess.Popen(
        [*command, "many", "--ray-address", cluster.address, "--ray-workers", "2"],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    while not (tmp_path / "many/runs/unknown-50-seed0/metrics.jsonl").is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    runs = [one for one in psutil.process_iter() if one.name().startswith("ray::_run")]
    runs[0].kill()
    said = told_by(process)
    assert "a Ray worker was lost (killed, or out of memory): started again, with its run" in said
    assert "run 3 of 3: " in said
    one, many = (open_study(tmp_path / name) for name in ("one", "many"))
    assert many.results.equals(one.results)
    assert many.outcomes.equals(one.outcomes)
    assert not list((tmp_path / "many").glob(".shared*"))


@pytest.mark.slow
def test_a_study_of_remedies_on_a_cluster_measures_what_one_process_does(
    cluster: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    new = [
        {
            "question": f"Which river crosses Land{n}?",
            "answer": f"River {n}x",
            "subject": f"Land{n}",
            "relation": "river",
        }
        for n in range(24)
    ]
    known = [{key: row[key] for key in ("question", "answer", "subject", "relation")} for row in fact_rows()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known + new))
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    study = {
        "data": "rows.jsonl", "model": settings["model"], "recipes": ["plain", "replay"], "rates": [3e-3], "epochs": 3,
        "seeds": 1, "audit": {"exemplar_sets": 2, "shots": 2, "dtype": "float32", "device": "cpu"},
        "tune": {
            "batch_size": 6, "dropout": 0, "prompt_template": str(template), "dtype": "float32", "device": "cpu",
            "canaries": "none",
        },
    }  # fmt: skip
    file = written(study, tmp_path / "study")
    few = "import foreknow.stages.remedies.sets as sets; sets.FEWEST = 4; from foreknow.cli import main; main()"
    command = [sys.executable, "-c", few, "study", "remedies", "--config", str(file), "--out"]
    for words in (["one"], ["many", "--ray-address", cluster.address, "--ray-workers", "2"]):
        done = subprocess.run(
            [*command, *words], env=environment(), check=False, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert f"2 workers with 1 thread each, on {cluster.address}" in done.stderr
    one, many = (open_remedies(tmp_path / name) for name in ("one", "many"))
    assert set(one.points["recipe"]) == {"plain", "replay"}
    assert many.points.equals(one.points)
    assert many.outcomes.equals(one.outcomes)


def test_a_node_that_cannot_see_the_studys_folder_says_so(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.write_text("word")
    seen = _sees(str(mark), "word")
    assert (tmp_path / f"mark.{seen}").read_text() == "word"
    assert _sees(str(mark), "another") == ""
    assert _sees(str(tmp_path / "absent"), "word") == ""


@pytest.mark.parametrize("name", ["ray", "ray.data"])
def test_without_ray_it_says_what_to_install(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(MissingExtra, match=r"^--ray: Ray is not installed: pip install 'foreknow\[ray\]'$"):
        audit_run.run(settings_of(AuditConfig, {**settings, "out": tmp_path / "out", "ray": True}))


@pytest.mark.parametrize("name", ["ray", "ray_address", "ray_workers"])
def test_a_study_gives_its_audit_rays_settings_itself(name: str) -> None:
    with pytest.raises(ConfigError, match=f"found {name}, which the study sets itself"):
        settings_of(StudyConfig, {"data": "facts", "audit": {name: 1}})


def test_workers_of_this_machine_and_of_ray_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^--workers: found with --ray, where --ray-workers says how many"):
        settings_of(StudyConfig, {"data": "facts", "ray": True, "workers": 2})


nodes = st.lists(st.builds(RayNode, st.integers(0, 64), st.integers(0, 8)), max_size=5)


@given(nodes, st.integers(1, 40), st.none() | st.integers(1, 16), st.booleans())
def test_workers_have_room_and_as_many_threads_as_fit(
    machines: list[RayNode], workers: int, threads: int | None, gpu: bool
) -> None:
    if worker_capacity(machines, threads or 1, gpu) < workers:
        with pytest.raises(ConfigError, match="of the Ray cluster, expected room for"):
            worker_spec(machines, workers, threads, gpu)
        return
    crew = worker_spec(machines, workers, threads, gpu)
    assert (crew.workers, crew.gpu) == (workers, gpu)
    assert worker_capacity(machines, crew.threads, gpu) >= workers
    if threads is None:
        assert worker_capacity(machines, crew.threads + 1, gpu) < workers
    else:
        assert crew.threads == threads


@given(nodes.filter(lambda some: any(n.cpus and n.gpus for n in some)))
def test_without_a_number_every_gpu_gets_a_worker_where_cores_allow(machines: list[RayNode]) -> None:
    gpus = sum(node.gpus for node in machines if node.cpus)
    if worker_capacity(machines, 1, True) == gpus:
        assert worker_spec(machines, None, None, True).workers == gpus


def test_a_laptops_cores_are_shared_out() -> None:
    assert worker_spec([RayNode(8, 0)], None, None, False) == WorkerSpec(2, 4, False)
    assert worker_spec([RayNode(8, 0)], 3, None, False) == WorkerSpec(3, 2, False)
    assert worker_spec([RayNode(16, 2)], None, None, True) == WorkerSpec(2, 8, True)
    assert str(WorkerSpec(2, 8, True)) == "2 workers with 8 threads and a GPU each"


NODE = "on 1 node of the Ray cluster"


@pytest.mark.parametrize(
    ("node", "workers", "threads", "gpu", "told"),
    [
        (RayNode(8, 0), 9, None, False, f"--ray-workers 9: found 8 cores {NODE}, expected room for 9 workers; "
         "give --ray-workers 8 or fewer or add nodes to the cluster"),
        (RayNode(8, 0), 3, 4, False, f"--ray-workers 3: found 8 cores {NODE}, expected room for 3 workers of 4 threads "
         "each (OMP_NUM_THREADS); give --ray-workers 2 or fewer or lower OMP_NUM_THREADS or add nodes to the cluster"),
        (RayNode(8, 1), 2, None, True, f"--ray-workers 2: found 8 cores and 1 GPU {NODE}, expected room for 2 workers; "
         "give --ray-workers 1 or add nodes to the cluster"),
        (RayNode(0, 0), None, None, False, f"--ray: found 0 cores {NODE}, expected room for 1 worker; "
         "add nodes to the cluster"),
    ],
)  # fmt: skip
def test_where_there_is_no_room_it_says_what_would_fit(
    node: RayNode, workers: int | None, threads: int | None, gpu: bool, told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        worker_spec([node], workers, threads, gpu)
    assert str(refused.value) == told


def test_more_workers_than_this_machine_has_cores_are_refused_before_ray_starts(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    asked = {**settings, "out": tmp_path / "out", "ray": True, "ray_workers": 9}
    with pytest.raises(ConfigError, match=r"^--ray-workers 9: found 2 cores on this machine, .*-workers 2 or fewer$"):
        audit_run.run(settings_of(AuditConfig, asked))
    assert not ray.is_initialized()


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.2", 0)) as free:
        address = f"127.0.0.2:{free.getsockname()[1]}"
    said = {
        address: f"--ray-address {address}: nothing answers there (Connection refused); give the address that "
        "'ray start --head' printed",
        "nonsense": "--ray-address: found nonsense, expected host:port, 'auto' or 'local'",
    }
    for asked, expected in said.items():
        cluster = Cluster(asked, None)
        began = time.monotonic()
        with pytest.raises(ConfigError) as refused:
            cluster.start()
        cluster.leave()
        assert str(refused.value) == expected
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", ["canonicalize_bootstrap_address", "print_to_stdstream"])
def test_rays_private_names_may_be_missing_or_others(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    services, worker = pytest.importorskip("ray._private.services"), pytest.importorskip("ray._private.worker")
    module = services if hasattr(services, name) else worker
    for missing in (False, True):
        if missing:
            monkeypatch.delattr(module, name)
        else:
            monkeypatch.setattr(module, name, lambda: None)
        if module is services:
            _check_answers("127.0.0.2:1")  # Ray itself will ask, and say so
        else:
            _mute()()
    for gone in (services, worker):
        monkeypatch.setitem(sys.modules, gone.__name__, None)
    _check_answers("127.0.0.2:1")
    _mute()()


def test_workers_that_would_have_nothing_to_do_are_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    crew = WorkerSpec(9, 2, False)
    assert limit_workers(crew, 9, "chunk") == limit_workers(crew, 0, "chunk") == crew
    assert capsys.readouterr().err == ""
    assert limit_workers(crew, 3, "chunk") == WorkerSpec(3, 2, False)
    assert limit_workers(crew, 1, "run") == WorkerSpec(1, 2, False)
    assert capsys.readouterr().err == (
        "3 chunks are left, so 3 of the 9 workers start\n1 run is left, so 1 of the 9 workers starts\n"
    )


def test_sigterm_goes_to_whom_it_went_before_ray_took_it() -> None:
    came: list[int] = []

    def rays(number: int, frame: object) -> None:
        raise SystemExit(number)

    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with _sigterm_kept():
            signal.signal(signal.SIGTERM, rays)
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        with pytest.raises(SystemExit), _sigterm_kept():
            rays(signal.SIGTERM, None)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_left_of_a_cluster_takes_over_with_the_same_threads() -> None:
    crew = WorkerSpec(3, 2, False)
    assert fit_workers(crew, [RayNode(2, 0), RayNode(3, 0)]) == WorkerSpec(2, 2, False)
    with pytest.raises(ResourceError, match="no node of the Ray cluster that has room for a worker is left"):
        fit_workers(crew, [RayNode(1, 0)])


@pytest.mark.parametrize("error", [ModelError("--model x: no"), ResourceError("full"), NotFinite("the loss is nan")])
def test_an_error_of_ours_comes_back_as_itself(error: ForeknowError) -> None:
    again = error_from_dict(json.loads(json.dumps(error_to_dict(error))))
    assert (type(again), str(again)) == (type(error), str(error))


def test_an_error_that_stands_elsewhere_comes_back_as_what_it_is_a_kind_of() -> None:
    again = error_from_dict(error_to_dict(TooFewExemplars("3 rows")))
    assert (type(again), str(again)) == (InputError, "3 rows")


def test_any_other_error_comes_back_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        divmod(1, 0)
    again = error_from_dict(error_to_dict(caught.value))
    assert isinstance(again, RuntimeError)
    assert "Traceback" in str(again)
    assert "ZeroDivisionError" in str(again)


def test_the_cost_is_divided_by_the_workers(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = estimate(settings_of(AuditConfig, {**settings, "ray": True, "ray_workers": 2, "dry_run": True}))
    assert found["time"].endswith(", measured on one and divided by 2: 2 workers with 1 thread each")
    assert found["seconds"] >= 0
