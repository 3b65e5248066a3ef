"""Several processes that tune one model: they end as one process does, fail as one, and are taken up again.

They are real processes that meet over gloo on the loopback device. FSDP runs on the CPU too, with one substitution:
accelerate shards on accelerators only, so the driver tells it that the CPU is one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.errors import RunFolderError
from foreknow.settings import settings_of
from foreknow.stages.train import run as train_run
from foreknow.stages.train.batches import shares
from foreknow.stages.train.result import TrainResult, open_train
from foreknow.stages.train.training_examples import TrainingExample

DRIVER = """
import atexit, json, os, signal, sys

good = False

def see_who_is_left():  # registered first, so it runs last
    threads = [open(f"/proc/self/task/{n}/comm").read() for n in os.listdir("/proc/self/task")] if good else []
    os.write(1, "".join(name for name in threads if "gloo" in name).encode())

if sys.platform == "linux":
    atexit.register(see_who_is_left)

given = json.loads(sys.argv[1])
number = int(os.environ["RANK"])
if given["sharded"]:
    from datetime import timedelta
    import torch.distributed.nn
    from accelerate import state
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
                   "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    state.PartialState._prepare_backend = lambda *_, **__: ("gloo", state.DistributedType.MULTI_GPU)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))

from foreknow.distributed import process_group
from foreknow.stages.train.run import run
from foreknow.config import TuneConfig
from foreknow.settings import settings_of
from foreknow.errors import ForeknowError
from foreknow.progress import log_to_stderr
log_to_stderr()

process_group.silence_ranks()
if number == given["who"]:
    from foreknow.stages.train.trainer import FactTrainer
    step, count = FactTrainer.training_step, [0]

    def failing(self, *rest):
        count[0] += 1
        if count[0] == given["step"]:
            if given["fault"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if given["fault"] == "memory":
                raise MemoryError
            next(self.model.parameters()).data[:] = float("nan")
        return step(self, *rest)

    FactTrainer.training_step = failing

try:
    for config in given["configs"]:
        run(settings_of(TuneConfig, config))
        print("done", flush=True)
    good = not given["sharded"]  # DTensor's caches hold the group
except ForeknowError as error:
    print(f"foreknow: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Ended(NamedTuple):
    """How one process ended, and what it said."""

    code: int
    out: str
    err: str


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start_two(command: Sequence[str], seconds: int = 240) -> list[Ended]:
    """The same command as two processes that find each other, as a launcher starts them."""
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = []
    for number in ("0", "1"):
        env = {**os.environ, **meeting, "RANK": number, "LOCAL_RANK": number, "GLOO_SOCKET_IFNAME": "lo"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both.append(subprocess.Popen(list(command), env=env, **pipes))
    ended = []
    try:
        for process in both:
            out, err = process.communicate(timeout=seconds)
            ended.append(Ended(process.returncode, out, err))
    finally:
        for process in both:
            process.kill()
    return ended


def tune_two(*configs: TuneConfig, sharded: bool = False, fault: str = "", who: int = -1, step: int = 0) -> list[Ended]:
    """Runs in two processes, one after the other; in process `who` something goes wrong at a step."""
    told = {"configs": [c.resolved() for c in configs], "sharded": sharded, "fault": fault, "who": who, "step": step}
    return start_two([sys.executable, "-c", DRIVER, json.dumps(told)])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Callable[..., TuneConfig]:
    folder = tmp_path_factory.mktemp("sets")
    rows = [
        {**{key: row[key] for key in ("question", "answer", "relation")}, "category": CATEGORIES[n % 4]}
        for n, row in enumerate(fact_rows())
    ]
    files = {}
    for name, part in (("train", rows[8:40]), ("dev", rows[:8]), ("ood", rows[40:])):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    template = folder / "template.yaml"
    template.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))

    def make(out: Path, **given: Any) -> TuneConfig:
        base = {
            "train": str(files["train"]), "dev": str(files["dev"]), "test": [f"ood={files['ood']}"], "out": out,
            "model": str(tiny_folder), "prompt_template": template, "dtype": "float32", "device": "cpu", "dropout": 0.0,
            "epochs": 2, "learning_rate": 1e-4, "batch_size": 7, "micro_batch_tokens": 60, "keep": "both",
            "canaries": "none",
        }  # fmt: skip
        return settings_of(TuneConfig, {**base, **given})

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def assert_same_run(ours: TrainResult, theirs: TrainResult) -> None:
    """The same choices and outcomes, losses and weights but for rounding."""
    for name in ("early_stop", "convergence"):
        assert ours.results[name]["epoch"] == theirs.results[name]["epoch"]
        found, wanted = weights(ours.folder / name), weights(theirs.folder / name)
        assert found.keys() == wanted.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, wanted[key], atol=2e-6, rtol=1e-4, msg=f"{name} {key}")
    assert len(ours.metrics) == len(theirs.metrics)
    for line, other in zip(ours.metrics, theirs.metrics, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
        for key in ("epoch", "step", "fitted", "em", "em_by_category", "counts"):
            assert line[key] == other[key]
    assert ours.outcomes.equals(theirs.outcomes)


UNEVEN = {"batch_size": 31, "eval_steps": (0, 1), "epochs": 3}
"""32 rows: steps of 16 and 15 rows with unlike micro-batches, then one of a single row, of which a process has none."""
LORA = {"method": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-3, "epochs": 1}


@pytest.fixture(scope="module")
def alone(settings: Callable[..., TuneConfig], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The run by one process."""
    return train_run.run(settings(tmp_path_factory.mktemp("alone") / "one", **UNEVEN))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads an old name
def test_two_processes_end_as_one_does(settings: Callable[..., TuneConfig], alone: TrainResult, tmp_path: Path) -> None:
    full, lora = tmp_path / "full", tmp_path / "lora"
    both = tune_two(settings(full, **UNEVEN), settings(lora, **LORA))
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    assert both[0].out == "done\ndone\n"
    assert both[0].err.count("CONVERGENCE: epoch") == 2
    assert both[1][1:] == ("", "")
    assert_same_run(open_train(full), alone)
    assert {p.name for p in full.iterdir()} == {p.name for p in alone.folder.iterdir()}
    assert_same_run(open_train(lora), train_run.run(settings(tmp_path / "alone", **LORA)))
    message = r"full: processes: begun with 2, started now with 1; start it with 2, choose another --out"
    with pytest.raises(RunFolderError, match=message):
        train_run.run(settings(full, **UNEVEN))


@pytest.fixture(scope="module")
def known_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Training rows, and facts that stand in no set: to watch, and to replay. The model knows the capitals."""
    folder, files, facts = tmp_path_factory.mktemp("known"), {}, fact_rows()
    for name, part in (("train", facts[18:40]), ("watch", facts[8:13]), ("replay", facts[13:18])):
        rows = [
            {"question": row["question"], "answer": row["answer"], "category": CATEGORIES[n % 4]}
            for n, row in enumerate(part)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[name] = str(folder / f"{name}.jsonl")
    return files


def assert_same_remedies(ours: TrainResult, theirs: TrainResult) -> None:
    """The same known rows, watched with the same outcome, and the same point on the way back."""
    for name in ("canaries", "replay", "made_up"):
        assert ours.results[name] == theirs.results[name], name
    assert ours.results["canaries"]["before"] > 0
    for line, other in zip(ours.metrics, theirs.metrics, strict=True):
        for part in ("replay", "kl"):
            assert line.get(part) == (pytest.approx(other[part], abs=1e-4) if part in other else None)
        assert line["text_loss"] == pytest.approx(other["text_loss"], abs=1e-4)
        assert line["canaries"]["kept"] == other["canaries"]["kept"]
    found, wanted = (run.results["average"] for run in (ours, theirs))
    assert found["alpha"] == wanted["alpha"]
    assert [point["fitted"] for point in found["points"]] == [point["fitted"] for point in wanted["points"]]
    mine, other_weights = weights(ours.folder / "averaged"), weights(theirs.folder / "averaged")
    for key, value in mine.items():
        torch.testing.assert_close(value, other_weights[key], atol=2e-6, rtol=1e-4, msg=f"averaged {key}")


def test_two_processes_hold_on_to_known_rows_as_one_does(
    settings: Callable[..., TuneConfig], known_files: dict[str, str], tmp_path: Path
) -> None:
    remedies: dict[str, Any] = {
        **{"train": known_files["train"], "replay_from": known_files["replay"], "canaries": known_files["watch"]},
        **{"replay": 0.3, "kl": 0.5, "kl_teacher": "known-epoch", "average": [0.5, 1.0], "batch_size": 21},
        "loss_weights": "flow",
    }  # 22 rows: the last step has a new row and one of the pool, and they are of unlike length
    both = tune_two(settings(tmp_path / "two", **remedies))
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    assert both[1][1:] == ("", "")
    ours, theirs = open_train(tmp_path / "two"), train_run.run(settings(tmp_path / "one", **remedies))
    assert_same_run(ours, theirs)
    assert_same_remedies(ours, theirs)
    assert {p.name for p in ours.folder.iterdir()} == {p.name for p in theirs.folder.iterdir()}


@pytest.mark.parametrize("trainable", ["attention", "layers:1-1"])
def test_two_processes_train_the_same_weights_and_wait_for_the_same_known_rows_as_one(
    settings: Callable[..., TuneConfig], known_files: dict[str, str], tmp_path: Path, trainable: str
) -> None:
    remedies = {"train": known_files["train"], "known_late": 0.5, "trainable": trainable}
    both = tune_two(settings(tmp_path / "two", **remedies))
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    ours, theirs = open_train(tmp_path / "two"), train_run.run(settings(tmp_path / "one", **remedies))
    assert_same_run(ours, theirs)
    assert any("known-late" in line for line in both[0].err.splitlines())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads an old name
@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_two_processes_choose_the_rate_of_one_and_go_on_after_a_kill(
    settings: Callable[..., TuneConfig], known_files: dict[str, str], tmp_path: Path, method: dict[str, Any]
) -> None:
    remedies: dict[str, Any] = {**method, "kl": 1.0, "kl_exemplars": "no", "average": [0.5, 1.0], "save_every": 1}
    remedies |= {"train": known_files["train"], "replay_from": known_files["replay"], "canaries": known_files["watch"]}
    remedies |= {"learning_rate": "auto"}
    cut, alone = settings(tmp_path / "cut", **remedies), settings(tmp_path / "one", **remedies)
    for step in (2, 5):
        ended = tune_two(cut, fault="killed", who=1, step=step)
        assert ended[1].code == -signal.SIGKILL
        assert ended[0].code == 1
    both = tune_two(cut)
    assert [end.code for end in both] == [0, 0], both[0].err + both[1].err
    ours, theirs = open_train(tmp_path / "cut"), train_run.run(alone)
    assert ours.results["learning_rate"]["chosen"] == theirs.results["learning_rate"]["chosen"]
    assert_same_run(ours, theirs)
    assert_same_remedies(ours, theirs)


@pytest.mark.slow
def test_remedies_that_need_whole_weights_are_refused_where_they_are_sharded(
    settings: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    first, second = tune_two(settings(tmp_path / "a", average=[0.5, 1.0]), sharded=True)
    assert (first.code, second.code) == (2, 2)
    assert "found FSDP; they need the whole model in each process: launch it without FSDP" in first.err


@pytest.mark.slow
def test_sharded_weights_end_as_whole_ones_do(
    settings: Callable[..., TuneConfig], alone: TrainResult, tmp_path: Path
) -> None:
    both = tune_two(settings(tmp_path / "two", **UNEVEN), sharded=True)
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    assert both[1][1:] == ("", "")
    assert "sharded over 2 processes" in both[0].err
    assert_same_run(open_train(tmp_path / "two"), alone)
    saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "convergence")
    assert (type(saved).__name__, saved.config.architectures) == ("LlamaForCausalLM", ["LlamaForCausalLM"])
    whole: Any = AutoModelForCausalLM.from_pretrained(alone.folder / "convergence")
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(saved(ids).logits, whole(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_bfloat16_is_computed_in_and_weights_stay_float32(
    settings: Callable[..., TuneConfig], tmp_path: Path, sharded: bool
) -> None:
    changed = {"dtype": "bfloat16", "epochs": 1}
    both = tune_two(settings(tmp_path / "two", **changed), sharded=sharded)
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    ours, theirs = open_train(tmp_path / "two"), train_run.run(settings(tmp_path / "one", **changed))
    assert ours.metrics[-1]["train_loss"] == pytest.approx(theirs.metrics[-1]["train_loss"], rel=1e-2)
    found, wanted = (weights(run.folder / "convergence") for run in (ours, theirs))
    assert all(value.dtype == torch.float32 for value in found.values())
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], atol=2e-3, rtol=0, msg=key)


@pytest.mark.slow
def test_what_fails_in_one_process_is_said_once_and_ends_both(
    settings: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    first, second = tune_two(settings(tmp_path / "a"), fault="memory", who=1, step=4)
    assert (first.code, second.code) == (1, 1)
    assert first.out == second.out == ""
    assert "foreknow:" not in first.err
    assert second.err.startswith("foreknow: process 1 of 2: out of memory; the last checkpoint is kept. Lower --micro")
    assert len(second.err.splitlines()) == 1


def test_bad_input_is_said_by_the_first_process(settings: Callable[..., TuneConfig], tmp_path: Path) -> None:
    config = settings(tmp_path / "a")
    command = [sys.executable, "-m", "foreknow", "tune", str(tmp_path / "none.jsonl"), "--dev", config.dev]
    first, second = start_two([*command, "--device", "cpu", "--out", str(tmp_path / "a")])
    assert (first.code, second.code) == (2, 2)
    assert first.err.startswith("foreknow: ")
    assert "none.jsonl" in first.err
    assert len(first.err.splitlines()) <= 2
    assert second[1:] == ("", "")


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_both(
    settings: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    first, second = tune_two(settings(tmp_path / "a"), fault="nan", who=1, step=6)
    assert (first.code, second.code) == (1, 1)
    assert "foreknow: the loss is nan at step 6 (epoch 2), rows " in first.err
    assert "kept: the best epoch so far, 1," in first.err
    assert second[1:] == ("", "")
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path / "a" / "early_stop").values())


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_killed_in_one_process_both_end_and_the_same_command_goes_on(
    settings: Callable[..., TuneConfig], tmp_path: Path, sharded: bool
) -> None:
    whole, cut = (settings(tmp_path / name, dropout=0.1, save_every=3) for name in ("whole", "cut"))
    for who, step in ((1, 8), (0, 2)):
        ended = tune_two(cut, sharded=sharded, fault="killed", who=who, step=step)
        assert ended[who].code == -signal.SIGKILL
        assert ended[1 - who].code == 1
        assert "another of the 2 processes was lost; the same command goes on" in ended[1 - who].err
        assert "Traceback" not in ended[1 - who].err
    both = tune_two(whole, cut, sharded=sharded)
    assert [end.code for end in both] == [0, 0], both[0].err + both[1].err
    assert "going on from the checkpoint after step 6" in both[0].err
    ours, theirs = open_train(tmp_path / "cut"), open_train(tmp_path / "whole")
    assert_same_run(ours, theirs)
    for name in ("early_stop", "convergence"):
        found, wanted = weights(ours.folder / name), weights(theirs.folder / name)
        assert all(torch.equal(value, wanted[key]) for key, value in found.items())


@pytest.mark.slow
def test_accelerate_launches_it(settings: Callable[..., TuneConfig], tmp_path: Path) -> None:
    config = settings(tmp_path / "two")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "foreknow", "tune", config.train, "--dev", config.dev, "--test", f"ood={config.test['ood']}"]
    command += ["--model", config.model, "--out", str(config.out), "--prompt-template", str(config.prompt_template)]
    command += ["--dtype", "float32", "--device", "cpu", "--dropout", "0", "--epochs", "2", "--learning-rate", "1e-4"]
    command += ["--batch-size", "7", "--micro-batch-tokens", "60", "--canaries", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CONVERGENCE") == 1
    assert_same_run(open_train(tmp_path / "two"), train_run.run(settings(tmp_path / "one")))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 60), st.integers(1, 5), st.integers(0, 19))
def test_shares_hold_every_row_once_in_as_many_parts(lengths: list[int], tokens: int, count: int, pool: int) -> None:
    pool = min(
        pool, len(lengths) - 1
    )  # rows of a pool are numbered below 0, and --kl counts them whatever their weight
    rows = [TrainingExample(n - pool, (1,) * length, (2,)) for n, length in enumerate(lengths)]
    found = shares(rows, tokens, count)
    assert len({len(parts) for parts in found}) == 1
    counted = [e.row for parts in found for part in parts for e in part if e.weight or e.row < 0]
    assert sorted(counted) == [e.row for e in rows]
    assert all(sum(e.length for e in part) <= tokens or len(part) == 1 for parts in found for part in parts)


def test_one_process_waits_for_nobody() -> None:
    assert (
        process_group.world_size(),
        process_group.rank(),
        process_group.is_main_process(),
        process_group.sharded(),
    ) == (
        1,
        0,
        True,
        False,
    )
    assert process_group.totals([1.5, 2]) == [1.5, 2]
    with process_group.process_group("cpu"):
        process_group.barrier()
