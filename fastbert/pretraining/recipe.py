"""Recipes of pre-training: the optimizer, its learning rate, and whether masks are static or dynamic.

PRESETS holds two. "google-2018" is what BERT was published with (Devlin et al. 2019, appendix A.2; what the paper leaves
open is taken from `optimization.py` and `run_pretraining.py` of its code). "modern" is what later work settled on:
    betas (0.9, 0.98), eps 1e-6   RoBERTa (Liu et al. 2019, section 3.1 and table 9): steadier at large batches
    learning rate 5e-4, warm-up over 6% of the steps
                                  RoBERTas of BERT-base's size at batches of 512 to 4096 (Zhang et al. 2021, "When do you
                                  need billions of words of pretraining data?", model cards). The rate goes with the batch:
                                  RoBERTa's table 3 has 1e-4 for 256 sequences, 7e-4 for 2048 and 1e-3 for 8192
    bias correction, decay from the end of warm-up, new masks in every epoch
                                  AdamW and the linear schedule of transformers; RoBERTa, section 4.1
    weight decay 0.01, clipping at 1   as in BERT (RoBERTa does not clip)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from fastbert.utils.printing import number_of

from .optimizers import AdamWithoutBiasCorrection, Lamb
from .parameter_groups import parameter_groups
from .value_checks import check_betas, check_choice, check_count, check_number

OPTIMIZERS = {
    "adamw": "Adam with bias correction and decoupled weight decay (torch.optim.AdamW)",
    "adam-no-bias-correction": "Adam without bias correction, the decay added to the update (AdamWithoutBiasCorrection)",
    "lamb": "LAMB, Adam whose updates are scaled to the norm of the weights (Lamb)",
}
DECAYS = ("linear",)
DECAY_FROM = {
    "warmup-end": "counted from the end of warm-up",
    "step-0": "counted from step 0, so that the rate drops at the end of warm-up",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the weights are trained.

    optimizer: one of OPTIMIZERS. learning_rate: the peak. betas, eps: of Adam's moments. weight_decay: of all weights but
    biases and LayerNorm. warmup_steps, warmup_ratio: optimizer steps, or their share of all, in which the rate rises from 0;
    one of the two, the other None. decay: how the rate falls to 0 at the last step. decay_from: where the fall is counted
    from, see `create_schedule`. max_grad_norm: the trainer clips all gradients together to this L2 norm; 0: it does not.
    static_masking: the masks of epoch 0 are used in all epochs, as prepared data with its duplicates is in the original code;
    else every epoch draws new ones.

    Raises TypeError, ValueError at a field it cannot use.
    """

    optimizer: str
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.01
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    decay: str = "linear"
    decay_from: str = "warmup-end"
    max_grad_norm: float = 1.0
    static_masking: bool = False

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_number("learning_rate", self.learning_rate, above=True)
        check_betas(self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))  # a list where it comes from JSON
        check_number("eps", self.eps, above=True)
        check_number("weight_decay", self.weight_decay)
        if (self.warmup_steps is None) == (self.warmup_ratio is None):
            got = f"warmup_steps={self.warmup_steps!r} and warmup_ratio={self.warmup_ratio!r}"
            raise ValueError(f"expected either warmup_steps or warmup_ratio and None for the other, got {got}")
        if self.warmup_steps is not None:
            check_count("warmup_steps", self.warmup_steps, 0)
        if self.warmup_ratio is not None:
            check_number("warmup_ratio", self.warmup_ratio, below=1.0)
        check_choice("decay", self.decay, DECAYS)
        check_choice("decay_from", self.decay_from, DECAY_FROM)
        check_number("max_grad_norm", self.max_grad_norm)
        if not isinstance(self.static_masking, bool):
            raise TypeError(f"expected static_masking to be True or False, got {self.static_masking!r}")

    def num_warmup_steps(self, max_steps: int) -> int:
        """Steps of warm-up in a training of max_steps; a share is rounded up, as transformers does.

        Raises TypeError, ValueError where max_steps is no count of at least 1 or ends before warm-up does.
        """
        check_count("max_steps", max_steps, 1)
        steps = math.ceil(max_steps * self.warmup_ratio) if self.warmup_ratio is not None else self.warmup_steps
        assert steps is not None
        if steps > max_steps:
            raise ValueError(f"expected max_steps of at least warmup_steps={steps}, got {max_steps}")
        return steps


PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        "modern": Recipe(optimizer="adamw", learning_rate=5e-4, betas=(0.9, 0.98), eps=1e-6, warmup_ratio=0.06),
        "google-2018": Recipe(
            optimizer="adam-no-bias-correction",
            learning_rate=1e-4,
            betas=(0.9, 0.999),
            eps=1e-6,
            warmup_steps=10_000,
            decay_from="step-0",
            static_masking=True,
        ),
    }
)


def create_optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The optimizer of a recipe over the `parameter_groups` of model, which must be on its device already.

    Raises ValueError where model has nothing to train.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
        return AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=fused)
    optimizer_class = Lamb if recipe.optimizer == "lamb" else AdamWithoutBiasCorrection
    return optimizer_class(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)


def create_schedule(recipe: Recipe, optimizer: Optimizer, max_steps: int) -> LambdaLR:
    """The learning rate of each of max_steps optimizer steps, w of them warm-up; step it once after every optimizer step.

    During warm-up step s (from 0) has s / w of the peak. Afterwards, with decay_from
        "warmup-end": (max_steps - s) / (max_steps - w), transformers' get_linear_schedule_with_warmup;
        "step-0":     (max_steps - s) / max_steps, as the original code: at step w the rate drops from about 1 to
                      1 - w / max_steps of the peak.

    Raises TypeError, ValueError where max_steps is no count of at least 1 or ends before warm-up does.
    """
    warmup_steps = recipe.num_warmup_steps(max_steps)
    if recipe.decay_from == "warmup-end":
        return get_linear_schedule_with_warmup(optimizer, warmup_steps, max_steps)
    return LambdaLR(optimizer, partial(_linear_from_step_0, warmup_steps=warmup_steps, max_steps=max_steps))


def describe(recipe: Recipe, other: Recipe = PRESETS["modern"]) -> list[str]:
    """Every difference of recipe from other, a line each, in words; no line where they are equal."""
    usual = _words(other)
    return [f"{name}: {words}; not {usual[name]}" for name, words in _words(recipe).items() if words != usual[name]]


def _words(recipe: Recipe) -> dict[str, str]:
    if recipe.warmup_ratio is not None:
        warmup = f"{recipe.warmup_ratio!r} of all steps"
    else:
        warmup = number_of(recipe.warmup_steps or 0, "step")
    return {
        "optimizer": OPTIMIZERS[recipe.optimizer],
        "learning rate": f"{recipe.learning_rate!r} at its peak",
        "betas": f"{recipe.betas[0]!r} and {recipe.betas[1]!r}",
        "eps": repr(recipe.eps),
        "weight decay": repr(recipe.weight_decay),
        "warm-up": warmup,
        "decay": f"{recipe.decay}, {DECAY_FROM[recipe.decay_from]}",
        "gradient clipping": f"to a norm of {recipe.max_grad_norm!r}" if recipe.max_grad_norm else "none",
        "masks": "those of epoch 0 in every epoch (static)" if recipe.static_masking else "new in every epoch (dynamic)",
    }


def _linear_from_step_0(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """The rate of a step as a share of the peak."""
    return step / warmup_steps if step < warmup_steps else max(0.0, 1 - step / max_steps)
