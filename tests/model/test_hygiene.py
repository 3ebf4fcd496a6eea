"""What importing costs and touches, what needs no Triton, what waits for the device."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastbert
from fastbert.kernels import use_backend
from tests.model.parity import (
    HEADS_AND_DECODER,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    SEQUENCE,
    TOKEN,
    assert_same_outputs,
    batch_of,
    labels_for,
    make_batch,
    pair,
)

ROOT = Path(__file__).resolve().parents[2]
IMPORT_SHARE = 1 / 12  # of what importing transformers' BERT takes in the same process: 0.3 s where that takes 3.6 s


def run_python(code: str, **environment: str):
    """Runs code in a fresh interpreter with the repository root first on the path, as under `python -m pytest` there.

    Returns the JSON that the code prints last.
    """
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FASTBERT_BACKEND")}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", "import json, sys; sys.path.insert(0, '')\n" + code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


TIME_THE_IMPORT = """
import time
begin = time.process_time()  # whatever else this machine does meanwhile
from transformers import (
    BertConfig, BertForMaskedLM, BertForMultipleChoice, BertForNextSentencePrediction, BertForPreTraining,
    BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification, BertLMHeadModel, BertModel)
before, start = set(sys.modules), time.process_time()
from fastbert import *
seconds, theirs, loaded = time.process_time() - start, start - begin, set(sys.modules) - before
"""
TINY = """
import torch, fastbert
from fastbert import *
config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
ids, mask = torch.ones(3, 7, dtype=torch.int64), (torch.arange(7)[None] < torch.tensor([7, 2, 4])[:, None]).long()
"""
WITH_EVERYTHING = f"""
{TIME_THE_IMPORT}
reference = BertModel
{TINY}
model = fastbert.BertForMaskedLM(config)
model(ids, attention_mask=mask, labels=ids).loss.backward()
fastbert.accelerate(reference(config))
str(fastbert.explain(model))
import fastbert.kernels
from packaging.version import InvalidVersion
from transformers.utils import is_kernels_available
try:
    hidden = is_kernels_available()
except InvalidVersion:  # transformers 5.4, of any folder of that name on the path, which it then does not import
    hidden = False
print(json.dumps({{
    "seconds": seconds, "theirs": theirs, "loaded": sorted(loaded), "by_running": sorted(set(sys.modules) - before - loaded),
    "cuda": torch.cuda.is_initialized(), "kernels": fastbert.kernels.__name__, "hidden": hidden,
}}))
"""
WITHOUT_TRITON = f"""
sys.modules["triton"] = None
{TINY}
outcomes = {{}}
for name in fastbert.__all__:
    if name.startswith("BertFor") or name in ("BertModel", "BertLMHeadModel"):
        model = getattr(fastbert, name)(config)
        wide = (ids[:, None], mask[:, None]) if name == "BertForMultipleChoice" else (ids, mask)
        first = next(iter(model(wide[0], attention_mask=wide[1]).values()))
        first.sum().backward()
        outcomes[name] = bool(first.isfinite().all())
outcomes["explained"] = "PyTorch" in str(fastbert.explain(model))
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """One fresh process: what importing fastbert, and then a forward and backward on a CPU, load, and how long it takes."""
    return run_python(WITH_EVERYTHING)


def test_importing_costs_little_beside_transformers(imported):
    assert imported["seconds"] < IMPORT_SHARE * imported["theirs"]


def test_importing_loads_no_triton_and_touches_no_gpu(imported):
    """What transformers itself loads was there before; fastbert adds neither Triton nor the command line's libraries."""
    added = {name.split(".")[0] for name in imported["loaded"] + imported["by_running"]}
    assert not added & {"triton", "pytest", "rich", "typer"}
    assert not imported["cuda"]
    assert "fastbert.model.bert" in imported["loaded"]


def test_running_on_a_cpu_loads_no_kernel(imported):
    files = {name for name in imported["loaded"] + imported["by_running"] if name.startswith("fastbert.kernels.")}
    assert "fastbert.kernels.functional" in files
    for name in ("attention.forward", "attention.backward", "linear", "layer_norm", "embedding", "cross_entropy"):
        assert (ROOT / "kernels" / f"{name.replace('.', '/')}.py").is_file(), name
        assert f"fastbert.kernels.{name}" not in files


def test_the_folder_of_the_kernels_hides_no_package(imported):
    """An __init__.py in it would hide Hugging Face's package of that name from transformers, which the process imported."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "kernels").is_dir()
    assert imported["kernels"] == "fastbert.kernels"
    assert not imported["hidden"]


def test_importing_the_package_alone_loads_nothing():
    """`import fastbert` is free; each name brings what it needs."""
    loaded = run_python("before = set(sys.modules); import fastbert; print(json.dumps(sorted(set(sys.modules) - before)))")
    assert not {name.split(".")[0] for name in loaded} & {"torch", "transformers", "triton", "numpy"}


def test_a_machine_without_triton_runs_every_class():
    outcomes = run_python(WITHOUT_TRITON)
    assert len(outcomes) == 10
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize(
    ("value", "expected"), [("torch", ["torch", "forced"]), ("triton", "triton"), ("nonsense", "nonsense")]
)
def test_the_environment_variable_forces_a_backend_or_raises(value, expected):
    code = """
import torch
try:
    from fastbert.kernels.backend import backend_reason
    print(json.dumps(backend_reason(torch.device("cpu"), torch.float32)))
except (RuntimeError, ValueError) as error:
    print(json.dumps(str(error)))
"""
    outcome = run_python(code, FASTBERT_BACKEND=value)
    assert outcome == expected if isinstance(expected, list) else expected in outcome


# ---- host synchronisations ----------------------------------------------------------------------------------------------

# What asks the device for a value: everything that turns a tensor into a Python number, a shape or host memory.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "unique",
    "_unique2",
    "unique_dim",
    "masked_select",
    "equal",
    "repeat_interleave",
    "item",
}
METHODS = ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__")


class Waits(TorchDispatchMode):
    """Counts waits for the device that a GPU run of the same Python code would make.

    Operators of fastbert count as a whole: what the interpreter does inside them on a CPU does not matter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        to_host = False
        if name == "_to_copy":
            to_host = (
                (kwargs or {}).get("device") is not None
                and torch.device(kwargs["device"]).type == "cpu"
                and args[0].device.type != "cpu"
            )
        if name in WAITING or by_mask or to_host:
            self.seen.append(name)
        self.inside += 1
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside -= 1


@contextmanager
def counted_waits(monkeypatch):
    """Counts, with value checks switched off as they are on a GPU."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("fastbert") and hasattr(module, "checks_values"):
            monkeypatch.setattr(module, "checks_values", lambda tensor: False)
    mode = Waits()
    for name in METHODS:
        original = getattr(torch.Tensor, name)

        def method(self, *args, original=original, name=name, **kwargs):
            if not mode.inside and not torch._C._len_torch_dispatch_stack() == 0 and name in ("tolist", "numpy", "cpu"):
                mode.seen.append(name)
            if name in ("tolist", "cpu"):  # one transfer, however many numbers
                mode.inside += 1
                try:
                    before = len(mode.seen)
                    result = original(self, *args, **kwargs)
                    del mode.seen[before:]
                    return result
                finally:
                    mode.inside -= 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, method)
    with mode:
        yield mode


def waits_of(monkeypatch, call) -> list[str]:
    """The waits of one call on the Triton side."""
    with monkeypatch.context() as patch, use_backend("triton"), counted_waits(patch) as mode:
        call()
    return mode.seen


SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 40, "use_cache": False}


def test_the_counter_counts(monkeypatch, device):
    x = torch.arange(6, device=device)
    with monkeypatch.context() as patch, counted_waits(patch) as mode:
        x.sum().item()
        bool(x.any())
        x.tolist()
        x[x > 2]
        x.nonzero()
        torch.stack([x.sum(), x.amax()]).tolist()
        x.index_select(0, x) + x.cumsum(0)
    assert len(mode.seen) == 6, mode.seen


def small_pair(head, device):
    """(fastbert's model, a batch for it)."""
    return pair(head, device=device.type, **SMALL)[1], small_batch(head).to(device.type)


def small_batch(head):
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    if head.choices:
        real = torch.stack([real, real, real], 1)
    batch = batch_of(real)
    batch.input_ids.clamp_(max=39)
    return batch


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_a_padded_batch_waits_once_at_most(head, labelled, monkeypatch, triton_device):
    fast, batch = small_pair(head, triton_device)
    inputs = batch.inputs(**labels_for(head, batch) if labelled else {})
    if "labels" in inputs and inputs["labels"].shape == batch.real.shape:
        inputs["labels"].clamp_(max=3 if head is TOKEN else 39)
    seen = waits_of(monkeypatch, lambda: fast(**inputs))
    assert len(seen) <= 1, seen


@pytest.mark.parametrize("head", [MASKED_LM, PRETRAINING], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_a_loss_without_logits_waits_once_at_most(head, masked, monkeypatch, triton_device):
    fast, batch = small_pair(head, triton_device)
    inputs = batch.inputs(**labels_for(head, batch))
    inputs["labels"].clamp_(max=39)
    if not masked:
        del inputs["attention_mask"]
    seen = waits_of(monkeypatch, lambda: fast(**inputs, return_logits=False))
    assert len(seen) <= 1, seen


@pytest.mark.parametrize("head", [head for head in HEADS_AND_DECODER if not head.choices], ids=str)
def test_a_packed_batch_never_waits(head, monkeypatch, triton_device):
    """Labels included: MLM over all positions, spans, classes."""
    fast, batch = small_pair(head, triton_device)
    labels = {
        name: value[batch.real] if value.shape == batch.real.shape else value for name, value in labels_for(head, batch).items()
    }
    labels = {name: value.clamp(max=1) if "position" in name else value.clamp(max=39) for name, value in labels.items()}
    inputs = {
        "input_ids": batch.input_ids[batch.real],
        "cu_seqlens": torch.tensor([0, 3, 5], dtype=torch.int32, device=triton_device),
        "max_seqlen": 3,
    }
    seen = waits_of(monkeypatch, lambda: fast(**inputs, **labels))
    assert seen == []


def test_a_batch_without_mask_never_waits(monkeypatch, triton_device):
    fast, batch = small_pair(MODEL, triton_device)
    assert waits_of(monkeypatch, lambda: fast(batch.input_ids)) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_never_waits_for_a_packed_batch():
    _, fast = pair(MODEL, device="cuda")
    batch = make_batch("no_mask").to("cuda")
    inputs = {"input_ids": batch.input_ids.flatten(), "max_seqlen": 12}
    inputs["cu_seqlens"] = torch.arange(0, 61, 12, dtype=torch.int32, device="cuda")
    fast(**inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_triton_side_and_the_torch_side_agree(triton_device):
    """One tiny model through the kernels, so that a forced backend is a real one here."""
    fast, batch = small_pair(SEQUENCE, triton_device)
    with use_backend("triton"):
        actual = fast(**batch.inputs())
        assert "triton (forced)" in str(fastbert.explain(fast))
    with use_backend("torch"):
        expected = fast(**batch.inputs())
    assert_same_outputs(actual, expected, batch.real)
