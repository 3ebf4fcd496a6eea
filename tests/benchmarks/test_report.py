"""The report: every contender with its number or its reason, the same bytes from the same records."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: the report draws with it")

from benchmarks import report
from benchmarks.harness.headline import headline
from benchmarks.harness.ragged import chart, digest, small_table
from benchmarks.harness.records import ABSENT, Contender, Row, load_all
from tests.benchmarks.records import INFERENCE, KERNEL, PRETRAINING, cells_of, everything, run, timed, write

ROOT = Path(__file__).resolve().parents[2]


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
    fused, peer = (dict(zip(head, cells_of(text, title, name, "±0.0%"))) for name in ("fastbert", "transformers"))
    assert (fused["fill"], fused["median ms"], fused["real tokens/s"], fused["sequences/s"]) == ("0.39", "100", "16,000", "320")
    assert (fused["TFLOP/s"], fused["of matmul ceiling"], fused["peak MiB"]) == ("0.0240", "24.0%", "3.00")
    assert (peer["fastbert against this"], peer["peak MiB"]) == ("2.00x", "not measured")
    # A contender that chose its own batch is counted by it; the precision bf16 is measured against bfloat16's ceiling.
    chosen = cells_of(text, "bert-base, 32 x 128 books, bf16", "fastbert", "±0.0%")
    assert "2,667" in chosen
    assert "6.0%" in chosen
    assert "53.3" in chosen  # sequences/s
    kernel = cells_of(text, "bert-base, layer norm forward, 8 x 128 fixed, float32", "fastbert")
    assert "10.0" in kernel
    assert "100.0%" in kernel


def checkout(folder: Path, block: str = f"{report.BEGIN}\nold\n{report.END}") -> Path:
    """A checkout with a README and a page of numbers, and nothing else."""
    for page in (report.README, report.NUMBERS):
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(f"before\n{block}\nafter\n")
    return folder


def test_report_twice_gives_the_same_bytes(tmp_path):
    write(tmp_path / "records" / "run.json", *everything())
    root = checkout(tmp_path / "root")
    contents = []
    for _ in range(2):
        status, _ = run(report, tmp_path / "records", "--checkout", root)
        assert status == 0
        contents.append({path.name: path.read_bytes() for path in tmp_path.rglob("*.*")})
    assert contents[0] == contents[1]
    pictures = {name for name in contents[0] if name.endswith(".png")}
    assert pictures == {"run-throughput.png", "run-roofline.png", "ragged.png"}  # no second batch size, no second memory
    for page, picture in ((report.README, "docs/images/ragged.png"), (report.NUMBERS, "images/ragged.png")):
        text = (root / page).read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert f"![Real tokens per second]({picture})" in text


def test_the_small_table_says_what_is_beside_what_and_what_has_no_number(tmp_path):
    absent = Contender("transformers, torch.compile", ABSENT, "no compiler")
    ragged = replace(INFERENCE, lengths="books")
    row = Row(ragged, (timed("transformers, SDPA", 0.2), absent, timed("fastbert", 0.1)))
    fixed = Row(replace(INFERENCE, lengths="fixed"), (timed("transformers, SDPA", 0.1), timed("fastbert", 0.1)))
    write(tmp_path / "run.json", row, fixed)
    text = small_table(load_all(tmp_path))
    head, cells = cells_of(text, "padding"), cells_of(text, "61%")
    found = dict(zip(head, cells))
    assert (found["transformers, SDPA"], found["transformers, torch.compile"], found["fastbert"]) == (
        "8,000",
        "absent",
        "16,000",
    )
    assert found["fastbert, beside the faster one"] == "2.00x"
    assert "fixed" not in text
    assert "On a GPU: not measured." in text
    assert "Some CPU, 2 threads" in text


def test_the_chart_is_drawn_from_the_numbers_it_names(tmp_path):
    write(tmp_path / "a" / "run.json", Row(INFERENCE, (timed("transformers, SDPA", 0.2), timed("fastbert", 0.1))))
    write(tmp_path / "b" / "run.json", Row(INFERENCE, (timed("transformers, SDPA", 0.2), timed("fastbert", 0.05))))
    one, other = load_all(tmp_path / "a"), load_all(tmp_path / "b")
    assert digest(one) != digest(other)
    assert digest(one).encode() in chart(one)
    write(tmp_path / "c" / "run.json", Row(KERNEL, (timed("torch", 0.2), timed("fastbert", 0.1))))
    assert chart(load_all(tmp_path / "c")) is None
    assert small_table(load_all(tmp_path / "c")) == "Text of many lengths: not measured."


def test_the_pages_show_the_records_that_are_here():
    """`python -m benchmarks.report --checkout .` would change no word; the chart carries what it was drawn from."""
    records = load_all(ROOT / "benchmarks" / "results")
    for path, content in report.build(ROOT / "benchmarks" / "results", ROOT).items():
        if path.suffix == ".md":
            assert path.read_text(encoding="utf-8") == content, path
    assert digest(records).encode() in (ROOT / report.CHART).read_bytes()


def test_the_sentence_vectors_in_the_readme_are_the_recorded_ones():
    seconds = json.loads((ROOT / "benchmarks" / "tasks" / "embedding.json").read_text())["seconds"]
    ours, sorted_too, in_order = (
        statistics.median(seconds[name]) for name in ("fastbert.embed", "sentence-transformers", "transformers, input order")
    )
    readme, numbers = ((ROOT / page).read_text(encoding="utf-8") for page in (report.README, report.NUMBERS))
    assert f"{sorted_too / ours:.2f} times as fast on 20,000 SNLI sentences" in " ".join(readme.split())
    for name, median in (("sorts by length", sorted_too), ("input order", in_order)):
        line = next(line for line in numbers.splitlines() if line.startswith("|") and name in line)
        assert f"| {median:.1f} | {20000 / median:.0f} | {median / ours:.2f}x |" in line


def test_readme_says_what_was_not_measured_and_under_which_conditions(tmp_path):
    write(tmp_path / "run.json", *everything())
    text = headline(load_all(tmp_path))
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
    text = headline(load_all(tmp_path))
    assert "Newer CPU" in text
    assert "Older CPU" not in text


@pytest.mark.parametrize("text", ["nothing", report.BEGIN, f"{report.END}\n{report.BEGIN}", f"{report.BEGIN}{report.END}" * 2])
def test_report_refuses_a_page_without_its_markers_and_writes_nothing(tmp_path, text):
    write(tmp_path / "results" / "run.json", *everything())
    root = checkout(tmp_path / "root", text)
    status, output = run(report, tmp_path / "results", "--checkout", root)
    assert status == 2
    assert "expected <!-- numbers: begin -->" in " ".join(output.replace("│", "").split())
    assert (root / report.README).read_text() == f"before\n{text}\nafter\n"
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
