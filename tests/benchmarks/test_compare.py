"""Two runs compared: planted changes are found, noise and slower machines are not blamed on fastbert."""

import re

import pytest

from benchmarks import compare
from benchmarks.harness.records import ABSENT, FAILED, WRONG, Contender, Row
from tests.benchmarks.records import INFERENCE, KERNEL, PRETRAINING, run, timed, write


def pair(tmp_path, old: Row, new: Row, **conditions) -> tuple[int, str]:
    return run(compare, write(tmp_path / "old.json", old), write(tmp_path / "new.json", new, **conditions))


def race(
    machine: float = 1.0, fastbert_factor: float = 1.0, peer_factor: float = 1.0, seed: int = 0, jitter: float = 0.02
) -> Row:
    """The baseline, a peer and fastbert; each factor is how many times as long it takes."""
    noise = {"jitter": jitter, "seed": seed}
    base, peer = timed("transformers", 0.2 * machine, **noise), timed("compiled", 0.15 * machine * peer_factor, **noise)
    return Row(INFERENCE, (base, peer, timed("fastbert", 0.1 * machine * fastbert_factor, **noise)))


def test_compare_catches_a_planted_slowdown(tmp_path):
    status, output = pair(tmp_path, race(), race(fastbert_factor=2.0, seed=1))
    assert status == 1
    assert "1 moved, 1 of these are regressions of fastbert" in output
    assert "slower" in output


def test_compare_catches_a_slowdown_that_a_faster_machine_hides(tmp_path):
    status, output = pair(tmp_path, race(), race(machine=0.5, fastbert_factor=2.0, seed=1))
    assert status == 1
    assert "1 moved, 1 of these are regressions of fastbert" in output


def test_compare_does_not_blame_fastbert_for_a_slower_peer(tmp_path):
    status, output = pair(tmp_path, race(), race(peer_factor=2.0, seed=1))
    assert status == 0
    assert "1 moved, 0 of these are regressions of fastbert" in output
    assert "compiled" in output


def test_compare_sees_an_improvement(tmp_path):
    status, output = pair(tmp_path, race(), race(fastbert_factor=0.5, seed=1))
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
    for folder, fastbert_factor in (("old", 1.0), ("new", 2.0)):
        write(tmp_path / folder / "a.json", race(fastbert_factor=fastbert_factor, seed=1), started="2026-02-02T00:00:00Z")
        write(tmp_path / folder / "b.json", race(fastbert_factor=9.0 / fastbert_factor), started="2026-01-01T00:00:00Z")
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
