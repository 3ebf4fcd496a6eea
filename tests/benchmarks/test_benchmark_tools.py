"""What is made of the records: the report, the comparison of two runs, and the prediction for many GPUs."""

import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("matplotlib", reason="matplotlib is not installed: the report draws with it")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bare pytest does not look in the root

from benchmarks import compare, report, scale
from benchmarks.harness.records import ABSENT, FAILED, TIMED, WRONG, Case, Contender, Row, load, load_all

CONDITIONS = {
    "device_type": "cpu", "device": "Some CPU", "versions": {"torch": "2.13.0", "fastbert": "0.1"}, "threads": 2, "seed": 0,
    "command": "pytest benchmarks", "commit": "0123456789abcdef", "dirty": False, "started": "2026-01-01T00:00:00Z",
}  # fmt: skip
CEILINGS = {"matmul": {"float32": 1e11, "bfloat16": 2e11}, "copy": 1e10}
INFERENCE = Case("inference", "bert-base", "float32", 32, 128, "books", 1600, 4096, 2.4e9)
PRETRAINING = Case("pretraining", "bert-base", "bf16", 32, 128, "books", 1600, 4096, 7.2e9)
KERNEL = Case("kernels", "bert-base", "float32", 8, 128, "fixed", 1024, 1024, 1e9, 1e8, "layer norm", "forward")
SCALING = Case("scaling", "bert-base", "float32", 4, 128, "fixed", 512, 512, 1e9, num_layers=2)
RUNNER = CliRunner()


def timed(name: str, seconds: float, rounds: int = 9, jitter: float = 0.0, seed: int = 0, **more) -> Contender:
    rng = random.Random(f"{name} {seconds} {seed}")
    return Contender(name, TIMED, seconds=tuple(seconds * (1 + jitter * rng.uniform(-1, 1)) for _ in range(rounds)), **more)


def write(path: Path, *rows: Row, ceilings=CEILINGS, **conditions) -> Path:
    """A file as `pytest benchmarks --record` leaves it."""
    own = {"conditions": CONDITIONS | conditions, "ceilings": ceilings, "rows": [row.as_dict() for row in rows]}
    content = {"fastbert": own}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def run(module, *arguments) -> tuple[int, str]:
    app = Typer()
    app.command()(module.main)
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def everything() -> list[Row]:
    peers = (Contender("gone", ABSENT, "needs a GPU"), Contender("crashed", FAILED, "out of memory"))
    peers += (Contender("liar", WRONG, "differs by 3.00 | a lot"),)
    rows = [Row(INFERENCE, (timed("transformers", 0.2), *peers, timed("fastbert", 0.1, peak_bytes=3 << 20)))]
    rows.append(Row(replace(INFERENCE, seqlen=256), (timed("transformers", 0.5), timed("fastbert", 0.2))))
    own_batch = timed("fastbert", 0.3, real_tokens=800, flops=3.6e9, details={"micro-batch": 16})
    rows.append(Row(PRETRAINING, (timed("transformers", 0.6), own_batch)))
    rows.append(Row(KERNEL, (timed("torch", 0.02), timed("fastbert", 0.01))))
    for layers in (2, 4, 8):
        case = replace(SCALING, num_layers=layers)
        rows.append(Row(case, (timed("fastbert", 0.01 * layers**1.5, details={"axis": "num_layers", "value": layers}),)))
    return rows


def cells_of(text: str, *wanted: str) -> list[str]:
    """The one table line that has these cells, as cells."""
    lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")]
    found = [line for line in lines if set(wanted) <= set(line)]
    assert len(found) == 1, found
    return found[0]


# report


def test_report_has_every_contender_with_its_numbers_or_its_reason(tmp_path):
    write(tmp_path / "cpu" / "run.json", *everything())
    status, _ = run(report, tmp_path)
    text = (tmp_path / "REPORT.md").read_text()
    assert status == 0
    title = "bert-base, 32 x 128 books, float32"
    for name, mark, reason in (
        ("gone", "**absent**", "needs a GPU"),
        ("crashed", "**failed**", "out of memory"),
        ("liar", "**wrong**", r"differs by 3.00 \| a lot"),
    ):
        cells = cells_of(text, title, name)
        assert mark in cells
        assert cells[-1].strip() == reason
    head = cells_of(text, "contender", "p99 ms")
    ours, theirs = (dict(zip(head, cells_of(text, title, name, "±0.0%"))) for name in ("fastbert", "transformers"))
    assert (ours["fill"], ours["median ms"], ours["real tokens/s"], ours["sequences/s"]) == ("0.39", "100", "16,000", "320")
    assert (ours["TFLOP/s"], ours["of matmul ceiling"], ours["peak MiB"]) == ("0.0240", "24.0%", "3.00")
    assert (theirs["fastbert against this"], theirs["peak MiB"]) == ("2.00x", "not measured")
    # A contender that chose its own batch is counted by it; the precision bf16 is measured against bfloat16's ceiling.
    chosen = cells_of(text, "bert-base, 32 x 128 books, bf16", "fastbert", "±0.0%")
    assert "2,667" in chosen
    assert "6.0%" in chosen
    assert "53.3" in chosen  # sequences/s
    kernel = cells_of(text, "bert-base, layer norm forward, 8 x 128 fixed, float32", "fastbert")
    assert "10.0" in kernel
    assert "100.0%" in kernel


def test_report_twice_gives_the_same_bytes(tmp_path):
    write(tmp_path / "run.json", *everything())
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    contents = []
    for _ in range(2):
        status, _ = run(report, tmp_path, "--readme", readme)
        assert status == 0
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    pictures = {name for name in contents[0] if name.endswith(".png")}
    assert pictures == {"run-throughput.png", "run-roofline.png"}  # no second batch size, no second memory
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "![Measurements](run-throughput.png)" in text


def test_readme_says_what_was_not_measured_and_under_which_conditions(tmp_path):
    write(tmp_path / "run.json", *everything())
    text = report.headline(load_all(tmp_path))
    gpu = [line for line in text.splitlines() if line.startswith("| GPU")]
    assert len(gpu) == 2
    assert all(set(line.strip("| ").split(" | ")) == {"GPU", "not measured"} for line in gpu)
    assert "2.00x" in cells_of(text, "CPU", "bert-base, 32 x 128 books, float32", "fastbert")
    assert "Without a number: gone (absent: needs a GPU); crashed (failed: out of memory); liar (wrong: differs by" in text
    assert "Some CPU, 2 threads, torch 2.13.0, commit 0123456789ab, 2026-01-01T00:00:00Z, `pytest benchmarks`" in text


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_report_opens_with_whether_a_gpu_was_measured(tmp_path, device_type):
    write(tmp_path / "run.json", *everything(), device_type=device_type)
    files = report.build(tmp_path)
    opening = files[tmp_path / "REPORT.md"].split("##")[0]
    assert ("On a GPU nothing is measured yet" in opening) == (device_type == "cpu")


def test_headline_takes_the_newest_record(tmp_path):
    rows = (Row(PRETRAINING, (timed("transformers", 0.3), timed("fastbert", 0.1))),)
    write(tmp_path / "a.json", *rows, started="2026-02-02T00:00:00Z", device="Newer CPU")
    write(tmp_path / "b.json", *rows, started="2026-01-01T00:00:00Z", device="Older CPU")
    text = report.headline(load_all(tmp_path))
    assert "Newer CPU" in text
    assert "Older CPU" not in text


@pytest.mark.parametrize("text", ["nothing", report.BEGIN, f"{report.END}\n{report.BEGIN}", f"{report.BEGIN}{report.END}" * 2])
def test_report_refuses_a_readme_without_its_markers_and_writes_nothing(tmp_path, text):
    write(tmp_path / "results" / "run.json", *everything())
    readme = tmp_path / "README.md"
    readme.write_text(text)
    status, output = run(report, tmp_path / "results", "--readme", readme)
    assert status == 2
    assert "expected <!-- numbers: begin -->" in " ".join(output.replace("│", "").split())
    assert readme.read_text() == text
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["run.json"]


def test_report_refuses_a_folder_without_records(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="expected at least one record below"):
        report.build(tmp_path)
    with pytest.raises(ValueError, match="expected a folder of records"):
        report.build(tmp_path / "none")


def test_report_tolerates_a_record_that_says_little(tmp_path):
    path = write(tmp_path / "run.json", *everything(), ceilings={})
    content = json.loads(path.read_text())
    content["fastbert"]["conditions"] = {"threads": 2}
    path.write_text(json.dumps(content))
    text = report.build(tmp_path)[tmp_path / "REPORT.md"]
    assert cells_of(text, "commit") == ["commit", "unknown"]
    assert cells_of(text, "matmul") == ["matmul", "not measured"]
    assert "not measured" in cells_of(text, "bert-base, 32 x 128 books, float32", "fastbert")


# slopes


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.83, 2.0])
def test_slope_of_a_power_law_is_its_exponent(exponent):
    found, misfit = report.slope([(x, 3e-4 * x**exponent) for x in (16, 128, 384, 512)])
    assert found == pytest.approx(exponent, abs=1e-9)
    assert misfit == pytest.approx(0, abs=1e-9)


def test_slope_tells_what_is_no_power_law():
    assert report.slope([(1, 1.0), (2, 1.0), (4, 16.0)])[1] > 0.5


@pytest.mark.parametrize("points", [[(8, 1.0)], [(8, 1.0), (8, 2.0)], [(8, 1.0), (16, 0.0)], []])
def test_slope_needs_two_places(points):
    with pytest.raises(ValueError, match="expected positive points"):
        report.slope(points)


@pytest.mark.parametrize("with_details", [True, False])
def test_slopes_of_the_scaling_suite_with_and_without_the_axis_in_the_details(with_details):
    rows = []
    for seqlen in (128, 256, 512):
        details = {"axis": "seqlen", "value": seqlen} if with_details else {}
        case = replace(SCALING, seqlen=seqlen, real_tokens=4 * seqlen, padded_tokens=4 * seqlen)
        ours = timed("fastbert", 1e-6 * seqlen**2, peak_bytes=1000 * seqlen, details=details)
        rows.append(Row(case, (ours, Contender("gone", ABSENT, "not there", details=details))))
    rows.append(Row(replace(SCALING, model="bert-large"), (timed("fastbert", 1.0),)))
    text = report.slope_table(rows)
    ours = cells_of(text, "fastbert", "seqlen")
    assert ours[3:6] == ["128 - 512", "n^2.00 (3 points)", "n^1.00 (3 points)"]
    assert cells_of(text, "gone", "seqlen")[4] == "not measured"
    assert "1 rows have no second value" in text


# compare


def pair(tmp_path, old: Row, new: Row, **conditions) -> tuple[int, str]:
    return run(compare, write(tmp_path / "old.json", old), write(tmp_path / "new.json", new, **conditions))


def race(machine: float = 1.0, ours: float = 1.0, theirs: float = 1.0, seed: int = 0, jitter: float = 0.02) -> Row:
    """The baseline, a peer and fastbert; each factor is how many times as long it takes."""
    noise = {"jitter": jitter, "seed": seed}
    base, peer = timed("transformers", 0.2 * machine, **noise), timed("compiled", 0.15 * machine * theirs, **noise)
    return Row(INFERENCE, (base, peer, timed("fastbert", 0.1 * machine * ours, **noise)))


def test_compare_catches_a_planted_slowdown(tmp_path):
    status, output = pair(tmp_path, race(), race(ours=2.0, seed=1))
    assert status == 1
    assert "1 moved, 1 of these are regressions of fastbert" in output
    assert "slower" in output


def test_compare_catches_a_slowdown_that_a_faster_machine_hides(tmp_path):
    status, output = pair(tmp_path, race(), race(machine=0.5, ours=2.0, seed=1))
    assert status == 1
    assert "1 moved, 1 of these are regressions of fastbert" in output


def test_compare_does_not_blame_fastbert_for_a_slower_peer(tmp_path):
    status, output = pair(tmp_path, race(), race(theirs=2.0, seed=1))
    assert status == 0
    assert "1 moved, 0 of these are regressions of fastbert" in output
    assert "compiled" in output


def test_compare_sees_an_improvement(tmp_path):
    status, output = pair(tmp_path, race(), race(ours=0.5, seed=1))
    assert status == 0
    assert "faster" in output


def test_compare_sees_less_noise_in_more_rounds():
    few, many = (compare._noise([timed("fastbert", 0.1, rounds, 0.1, seed=3)] * 4, 0.0) for rounds in (8, 128))
    assert 1.05 < many < few < 1.5
    assert (few - 1) / (many - 1) == pytest.approx(4, rel=0.5)  # the square root of the rounds
    assert compare._noise([timed("fastbert", 0.1)], 0.02) == 1.02


@pytest.mark.parametrize("seed", range(5))
def test_compare_is_silent_about_noise(tmp_path, seed):
    status, output = pair(tmp_path, race(seed=seed, jitter=0.1), race(seed=seed + 100, jitter=0.1))
    assert status == 0
    assert "0 moved" in output
    assert "2 within the noise" in output
    assert "Moved by more" not in output


def test_compare_is_silent_about_a_slower_machine(tmp_path):
    status, output = pair(tmp_path, race(), race(machine=1.7, seed=1))
    assert status == 0
    assert "0 moved" in output
    assert re.search(r"baselines: 1, 1\.[67]\d\dx as long as before", output)


def test_compare_judges_fastbert_raw_where_it_is_the_baseline(tmp_path):
    rows = [Row(KERNEL, (timed("fastbert", seconds),)) for seconds in (0.1, 0.2)]
    status, output = pair(tmp_path, *rows)
    assert status == 1
    assert "judged raw: it is the baseline" in output


@pytest.mark.parametrize("status", [WRONG, FAILED, ABSENT])
def test_compare_counts_a_lost_number_as_a_regression(tmp_path, status):
    lost = Row(INFERENCE, (*race().contenders[:2], Contender("fastbert", status, "max error 3")))
    code, output = pair(tmp_path, race(), lost)
    assert code == 1
    assert f"timed -> {status}: max error 3" in output
    code, output = pair(tmp_path, lost, race())
    assert code == 0
    assert "gained" in output


def test_compare_counts_tokens_not_calls(tmp_path):
    old, new = (Row(PRETRAINING, (timed("fastbert", 0.1 * n, real_tokens=800 * n),)) for n in (1, 2))
    status, output = pair(tmp_path, old, new)
    assert status == 0
    assert "1 within the noise" in output


def test_compare_lists_what_only_one_side_has(tmp_path):
    old = write(tmp_path / "old.json", race(), Row(KERNEL, (timed("torch", 1.0),)))
    new = write(tmp_path / "new.json", Row(INFERENCE, (*race().contenders, timed("newcomer", 0.1))))
    status, output = run(compare, old, new)
    assert status == 0
    assert f"only in OLD: {KERNEL.title}" in output
    assert f"only in NEW: {INFERENCE.title}: newcomer" in output


def test_compare_does_not_judge_single_rounds(tmp_path):
    old, new = (Row(INFERENCE, (timed("transformers", 0.2, 1), timed("fastbert", seconds, 1))) for seconds in (0.1, 0.2))
    status, output = pair(tmp_path, old, new)
    assert status == 0
    assert "Not judged" in output
    assert "1 not judged" in output


def test_compare_warns_of_other_conditions(tmp_path):
    _, output = pair(tmp_path, race(), race(), device="Other CPU", versions={"torch": "2.14.0", "fastbert": "0.2"})
    assert "the conditions differ in device: Some CPU -> Other CPU" in output
    assert "the conditions differ in torch: 2.13.0 -> 2.14.0" in output
    assert "0.2" not in output.split("baselines")[0]


def test_compare_takes_the_newest_of_a_folder_and_keeps_devices_apart(tmp_path):
    for folder, ours in (("old", 1.0), ("new", 2.0)):
        write(tmp_path / folder / "a.json", race(ours=ours, seed=1), started="2026-02-02T00:00:00Z")
        write(tmp_path / folder / "b.json", race(ours=9.0 / ours), started="2026-01-01T00:00:00Z")
    write(tmp_path / "new" / "c.json", race(), device_type="cuda", device="Some GPU")
    status, output = run(compare, tmp_path / "old", tmp_path / "new")
    assert status == 1
    assert "1 moved" in output
    assert "2 older measurements" in output
    assert f"only in NEW: {INFERENCE.title}\n" in output


def test_compare_refuses_what_is_no_record(tmp_path):
    good = write(tmp_path / "good.json", race())
    (tmp_path / "other.json").write_text("{}")
    for bad in (tmp_path / "none.json", tmp_path / "other.json", write(tmp_path / "empty" / "r.json").parent):
        assert run(compare, good, bad)[0] == 2
    assert run(compare, good, good, "--floor", "-1")[0] == 2


# scale

STEP = scale.Step(seconds=0.2, tokens=16000, grad_bytes=4 * 336_000_000, units=25, sequences=64)
CLUSTER = scale.Cluster(intra=450e9, inter=50e9, gpus_per_node=8, hop=5e-6)
EXPOSED = [scale.ddp_exposed, scale.fsdp_exposed]


@pytest.mark.parametrize("exposed", EXPOSED)
def test_one_gpu_takes_the_measured_step(exposed):
    assert exposed(STEP, CLUSTER, 1) == 0
    assert scale.tokens_per_s(STEP, exposed(STEP, CLUSTER, 1), 1) == 16000 / 0.2


@pytest.mark.parametrize("exposed", EXPOSED)
@pytest.mark.parametrize("overlap", [0.0, 0.8, 1.0])
def test_communication_costs_more_on_more_gpus_and_never_nothing(exposed, overlap):
    step = replace(STEP, overlap=overlap)
    seconds = [exposed(step, CLUSTER, gpus) for gpus in scale.SIZES]
    assert seconds == sorted(seconds)
    assert all(one > 0 for one in seconds[1:])
    assert all(scale.efficiency(step, one) < 1 for one in seconds[1:])


@pytest.mark.parametrize("exposed", EXPOSED)
@pytest.mark.parametrize("gpus", [2, 8, 64, 1024])
def test_better_hardware_never_hurts(exposed, gpus):
    slow = scale.Cluster(intra=20e9, inter=1e9, gpus_per_node=8, hop=5e-6)
    before = exposed(STEP, slow, gpus)
    for better in ({"intra": 40e9}, {"inter": 2e9}, {"hop": 1e-6}, {"intra": 900e9, "inter": 900e9}):
        assert exposed(STEP, replace(slow, **better), gpus) <= before
    assert exposed(STEP, replace(slow, intra=900e9, inter=900e9), gpus) < before
    assert exposed(replace(STEP, overlap=1.0), slow, gpus) <= exposed(replace(STEP, overlap=0.0), slow, gpus)


def test_unhidden_all_reduce_is_the_ring_formula():
    step, cluster = replace(STEP, overlap=0.0), replace(CLUSTER, hop=0.0)
    assert scale.ddp_exposed(step, cluster, 8) == pytest.approx(2 * 7 / 8 * step.grad_bytes / 450e9)
    assert scale.ddp_exposed(step, cluster, 64) == pytest.approx(2 * 63 / 64 * step.grad_bytes / 400e9)  # eight links out
    assert scale.fsdp_exposed(step, cluster, 8) == pytest.approx(3 * 7 / 8 * step.grad_bytes / 450e9)


@pytest.mark.parametrize("change", [
    {"seconds": 0.0}, {"seconds": float("nan")}, {"tokens": -1}, {"overlap": 1.1}, {"backward_share": -0.1},
    {"bucket_bytes": 0}, {"sequences": 0},
])  # fmt: skip
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


@pytest.mark.parametrize("arguments", [
    (), ("--step-seconds", "1"), ("--step-seconds", "1", "--tokens", "5"), ("--record", "none.json"),
    ("--step-seconds", "-1", "--tokens", "5", "--model", "bert-base"),
    ("--step-seconds", "1", "--tokens", "5", "--model", "bert-base", "--grad-dtype", "int8"),
    ("--step-seconds", "1", "--tokens", "5", "--model", "bert-base", "--inter-gbs", "0"),
])  # fmt: skip
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
