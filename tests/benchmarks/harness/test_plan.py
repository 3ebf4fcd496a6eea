"""The plan of each size of run."""

from benchmarks.harness import plan


def test_every_size_of_run_has_cases_with_distinct_names():
    for size in ("check", "quick", "default", "full"):
        for cases in (plan.kernel_cases, plan.inference_cases, plan.training_cases, plan.scaling_cases):
            names = [case.id for case in cases(size)]
            assert names
            assert len(set(names)) == len(names)
