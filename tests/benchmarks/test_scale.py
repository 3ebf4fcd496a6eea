"""The prediction for many GPUs: formulas, what it reads from a record, what it refuses."""

import re
from dataclasses import replace

import pytest

from benchmarks import scale
from benchmarks.harness.communication import Cluster, Step, ddp_exposed, efficiency, fsdp_exposed, tokens_per_s
from benchmarks.harness.records import FAILED, Contender, Row, load
from tests.benchmarks.records import PRETRAINING, run, timed, write

STEP = Step(seconds=0.2, tokens=16000, grad_bytes=4 * 336_000_000, units=25, sequences=64)
CLUSTER = Cluster(intra=450e9, inter=50e9, gpus_per_node=8, hop=5e-6)
EXPOSED = [ddp_exposed, fsdp_exposed]


@pytest.mark.parametrize("exposed", EXPOSED)
def test_one_gpu_takes_the_measured_step(exposed):
    assert exposed(STEP, CLUSTER, 1) == 0
    assert tokens_per_s(STEP, exposed(STEP, CLUSTER, 1), 1) == 16000 / 0.2


@pytest.mark.parametrize("exposed", EXPOSED)
@pytest.mark.parametrize("overlap", [0.0, 0.8, 1.0])
def test_communication_costs_more_on_more_gpus_and_never_nothing(exposed, overlap):
    step = replace(STEP, overlap=overlap)
    seconds = [exposed(step, CLUSTER, gpus) for gpus in scale.GPUS]
    assert seconds == sorted(seconds)
    assert all(one > 0 for one in seconds[1:])
    assert all(efficiency(step, one) < 1 for one in seconds[1:])


@pytest.mark.parametrize("exposed", EXPOSED)
@pytest.mark.parametrize("gpus", [2, 8, 64, 1024])
def test_better_hardware_never_hurts(exposed, gpus):
    slow = Cluster(intra=20e9, inter=1e9, gpus_per_node=8, hop=5e-6)
    before = exposed(STEP, slow, gpus)
    for better in ({"intra": 40e9}, {"inter": 2e9}, {"hop": 1e-6}, {"intra": 900e9, "inter": 900e9}):
        assert exposed(STEP, replace(slow, **better), gpus) <= before
    assert exposed(STEP, replace(slow, intra=900e9, inter=900e9), gpus) < before
    assert exposed(replace(STEP, overlap=1.0), slow, gpus) <= exposed(replace(STEP, overlap=0.0), slow, gpus)


def test_unhidden_all_reduce_is_the_ring_formula():
    step, cluster = replace(STEP, overlap=0.0), replace(CLUSTER, hop=0.0)
    assert ddp_exposed(step, cluster, 8) == pytest.approx(2 * 7 / 8 * step.grad_bytes / 450e9)
    assert ddp_exposed(step, cluster, 64) == pytest.approx(2 * 63 / 64 * step.grad_bytes / 400e9)  # eight links out
    assert fsdp_exposed(step, cluster, 8) == pytest.approx(3 * 7 / 8 * step.grad_bytes / 450e9)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"tokens": -1},
        {"overlap": 1.1},
        {"backward_share": -0.1},
        {"bucket_bytes": 0},
        {"sequences": 0},
    ],
)
def test_a_step_that_cannot_be_raises(change):
    with pytest.raises(ValueError, match=f"expected {next(iter(change))}"):
        replace(STEP, **change)


@pytest.mark.parametrize("change", [{"intra": 0.0}, {"inter": float("inf")}, {"gpus_per_node": 0}, {"hop": -1.0}])
def test_a_cluster_that_cannot_be_raises(change):
    with pytest.raises(ValueError, match=f"expected {next(iter(change))}"):
        replace(CLUSTER, **change)


def test_scale_reads_the_step_of_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "model_shape", lambda model: (110_000_000, 13))
    own_batch = timed("fastbert", 0.25, real_tokens=800, details={"micro-batch": 16})
    silent = replace(own_batch, name="silent", details={})
    path = write(tmp_path / "run.json", Row(PRETRAINING, (timed("transformers", 0.5), own_batch, silent)))
    status, output = run(scale, "--record", path)
    assert status == 0
    assert output.startswith("Predicted on paper")
    assert "250.000 ms, 800 real tokens" in output
    assert "NOT A GPU" in output
    assert "none is shown" in output
    assert re.search(r"│ +1 │ +3,200 │ +100\.0% │ +3,200 │ +100\.0% │ +64 │", output)
    assert re.search(r"100\.0% │ +unknown │", run(scale, "--record", path, "--contender", "silent")[1])
    assert "500.000 ms, 1,600 real tokens" in run(scale, "--record", path, "--contender", "transformers")[1]


def test_scale_shows_published_results_with_their_source_for_bert_large_only(monkeypatch):
    monkeypatch.setattr(scale, "model_shape", lambda model: (336_000_000, 25))
    given = ("--step-seconds", "0.2", "--tokens", "16000", "--model")
    _, large = run(scale, *given, "bert-large")
    assert "mlcommons/training_results_v3.0" in large
    assert "138,668" in large
    assert "138,668" not in run(scale, *given, "bert-base")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--step-seconds", "1"),
        ("--step-seconds", "1", "--tokens", "5"),
        ("--record", "none.json"),
        ("--step-seconds", "-1", "--tokens", "5", "--model", "bert-base"),
        ("--step-seconds", "1", "--tokens", "5", "--model", "bert-base", "--grad-dtype", "int8"),
        ("--step-seconds", "1", "--tokens", "5", "--model", "bert-base", "--inter-gbs", "0"),
    ],
)
def test_scale_refuses_nonsense(monkeypatch, arguments):
    monkeypatch.setattr(scale, "model_shape", lambda model: (110_000_000, 13))
    status, output = run(scale, *arguments)
    assert status == 2
    assert "Predicted" not in output


def test_scale_refuses_a_record_without_one_fitting_step(tmp_path):
    rows = [Row(replace(PRETRAINING, batch_size=size), (Contender("fastbert", FAILED, "no"),)) for size in (16, 32)]
    path = write(tmp_path / "run.json", *rows)
    with pytest.raises(ValueError, match="got 2 of"):
        scale.measured(path, "fastbert", None)
    with pytest.raises(ValueError, match="expected a timed contender"):
        scale.measured(path, "fastbert", "16 x")
    assert load(path).rows[0].case.batch_size == 16


def test_parameters_are_counted_not_typed():
    pytest.importorskip("benchmarks.harness.work", reason="the named sizes are not there")
    base, large = scale.model_shape("bert-base"), scale.model_shape("bert-large")
    assert (base[1], large[1]) == (13, 25)
    # Embeddings, 12 layers, pooler, both heads; the decoder's matrix is the embedding's and counts once.
    d, f, vocab = 768, 3072, 30522
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    heads = (d * d + d) + (d * d + d + 2 * d + vocab) + (2 * d + 2)
    assert base[0] == (vocab + 512 + 2) * d + 2 * d + 12 * layer + heads
    with pytest.raises(ValueError, match="expected a model among"):
        scale.model_shape("bert-huge")
