"""The optimizers of BERT pre-training that torch lacks: Adam without bias correction, and LAMB.

Both keep Adam's two moments per parameter and decay weights inside the update, before the learning rate:
    update = m / (sqrt(v) + eps) + weight_decay * w        AdamWithoutBiasCorrection: w -= lr * update
                                                           Lamb: w -= lr * |w| / |update| * update
They never wait for the device. With `foreach` an operation runs over all tensors at once and two copies of the
parameters are held during a step; without, over one tensor after the other. State is in each parameter's own dtype: keep
the parameters in float32, as mixed precision does.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from .value_checks import check_betas, check_number

Corrections = tuple[list[float], list[float]]
TRUST_RATIOS = ("decayed", "all", "none")


class _AdamMoments(Optimizer):
    """Adam's moments and the update they give; a subclass says how the weights are moved by it."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, with their options where given. Raises TypeError, ValueError at an option it cannot use."""
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter with a gradient.

        closure: None, or a function without arguments that is called first, and whose result is returned.

        Raises TypeError at a parameter that is not real, ValueError at a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norm = self._gradient_norm()
        for group in self.param_groups:
            for parameters in _by_device_and_dtype(group["params"]):
                grads = [_dense_grad(parameter) for parameter in parameters]
                if norm is not None and group["normalize_gradients"]:
                    grads = list(torch._foreach_div(grads, norm.to(parameters[0].device)))
                states = [self._state_of(parameter) for parameter in parameters]
                if parameters[0].is_cuda if group["foreach"] is None else group["foreach"]:
                    self._descend_all(group, parameters, self._updates(group, parameters, grads, states))
                else:
                    for parameter, grad, state in zip(parameters, grads, states):
                        self._descend(group, parameter, self._update(group, parameter, grad, state))
        return loss

    def _check(self, group: dict[str, Any]) -> None:
        check_number("lr", group["lr"])
        check_number("weight_decay", group["weight_decay"])
        check_number("eps", group["eps"], above=True)  # 0 / 0 at a gradient that was always 0
        check_betas(group["betas"])
        if group["foreach"] not in (None, True, False):
            raise TypeError(f"expected foreach to be True, False or None, got {group['foreach']!r}")

    def _gradient_norm(self) -> Tensor | None:
        """The L2 norm of all gradients together, 1 where it is 0; None where no group asks for it."""
        if not any(group.get("normalize_gradients") for group in self.param_groups):
            return None
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(grads)
        return torch.where(norm > 0, norm, 1.0)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _bias_corrections(self, group: dict[str, Any], states: list[dict[str, Tensor]]) -> Corrections | None:
        """What the first moments and the square roots of the second are divided by, one for each state, or None for 1."""
        return None

    def _update(self, group: dict[str, Any], parameter: Tensor, grad: Tensor, state: dict[str, Tensor]) -> Tensor:
        beta1, beta2 = group["betas"]
        exp_avg = state["exp_avg"].lerp_(grad, 1 - beta1)
        denominator = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2).sqrt()
        corrections = self._bias_corrections(group, [state])
        if corrections is not None:
            denominator.div_(corrections[1][0])
        update = exp_avg / denominator.add_(group["eps"])
        if corrections is not None:
            update.div_(corrections[0][0])
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        return update

    def _updates(
        self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]]
    ) -> list[Tensor]:
        """`_update` of every parameter."""
        beta1, beta2 = group["betas"]
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        corrections = self._bias_corrections(group, states)
        if corrections is not None:
            torch._foreach_div_(denominators, corrections[1])
        torch._foreach_add_(denominators, group["eps"])
        updates = list(torch._foreach_div(exp_avgs, denominators))
        if corrections is not None:
            torch._foreach_div_(updates, corrections[0])
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        return updates

    def _descend(self, group: dict[str, Any], parameter: Tensor, update: Tensor) -> None:
        parameter.add_(update, alpha=-group["lr"])

    def _descend_all(self, group: dict[str, Any], parameters: list[Tensor], updates: list[Tensor]) -> None:
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


class AdamWithoutBiasCorrection(_AdamMoments):
    """The optimizer BERT was pre-trained with: `AdamWeightDecayOptimizer` in `optimization.py` of Devlin et al. (2019).

    Differs from torch.optim.AdamW in that the moments, which begin at 0, are not divided by 1 - beta ** step. That makes an
    update (1 - beta1 ** step) / sqrt(1 - beta2 ** step) times as large: 3.2 at step 1, 6.6 at step 12, 1.3 at step 1000.

    params: parameters, or groups with their own options. lr: learning rate. betas: how much of each moment stays.
    eps: added to the root of the second moment. weight_decay: share of the weight added to the update.
    foreach: all tensors at once; None: where they are on a GPU.

    Raises TypeError, ValueError at an option it cannot use.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        foreach: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach}
        super().__init__(params, defaults)


class Lamb(_AdamMoments):
    """LAMB: Adam whose update of each tensor is scaled to the norm of its weights (You et al. 2020, Algorithm 2; φ(z) = z).

    The factor, the trust ratio, is |w| / |update|, and 1 where either norm is 0. It needs whole tensors: a parameter that is
    cut up or flattened into another (the first FSDP) gets the norm of its piece.

    params, lr, betas, eps, weight_decay, foreach: as in AdamWithoutBiasCorrection.
    bias_correction: divides the moments by 1 - beta ** step, as Algorithm 2 does.
    trust_ratio: which groups it scales. "decayed": those with weight_decay above 0, so neither biases nor LayerNorm of
        `parameter_groups`, as in the authors' BERT code; "all"; "none": the update of AdamW.
    trust_clip: bounds the trust ratio from above; None: no bound.
    normalize_gradients: divides the gradients by the L2 norm of all of them together first (NVIDIA's variant, NVLAMB), so
        that clipping by global norm has no effect.

    Raises TypeError, ValueError at an option it cannot use.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        trust_ratio: str = "decayed",
        trust_clip: float | None = None,
        normalize_gradients: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach}
        defaults |= {"bias_correction": bias_correction, "trust_ratio": trust_ratio, "trust_clip": trust_clip}
        super().__init__(params, defaults | {"normalize_gradients": normalize_gradients})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for values in self.state.values():
            values["step"] = values["step"].cpu()  # a checkpoint read onto a GPU would make every step wait for it

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        for name in ("bias_correction", "normalize_gradients"):
            if not isinstance(group[name], bool):
                raise TypeError(f"expected {name} to be True or False, got {group[name]!r}")
        if group["trust_ratio"] not in TRUST_RATIOS:
            raise ValueError(f"expected trust_ratio to be one of {', '.join(TRUST_RATIOS)}, got {group['trust_ratio']!r}")
        if group["trust_clip"] is not None:
            check_number("trust_clip", group["trust_clip"], above=True)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = super()._state_of(parameter)
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
        return state

    def _bias_corrections(self, group: dict[str, Any], states: list[dict[str, Tensor]]) -> Corrections | None:
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        if not group["bias_correction"]:
            return None
        beta1, beta2 = group["betas"]
        counts = [step.item() for step in steps]
        return [1 - beta1**count for count in counts], [math.sqrt(1 - beta2**count) for count in counts]

    def _descend(self, group: dict[str, Any], parameter: Tensor, update: Tensor) -> None:
        if not _is_scaled(group):
            return super()._descend(group, parameter, update)
        dtype = _norm_dtype(parameter)
        weight_norm = torch.linalg.vector_norm(parameter, dtype=dtype)
        update_norm = torch.linalg.vector_norm(update, dtype=dtype)
        ratio = _trust_ratios(weight_norm, update_norm, group["trust_clip"])
        parameter.addcmul_(update, ratio, value=-group["lr"])

    def _descend_all(self, group: dict[str, Any], parameters: list[Tensor], updates: list[Tensor]) -> None:
        if not _is_scaled(group):
            return super()._descend_all(group, parameters, updates)
        dtype = _norm_dtype(parameters[0])
        weight_norms = torch.stack(torch._foreach_norm(parameters, 2, dtype))
        update_norms = torch.stack(torch._foreach_norm(updates, 2, dtype))
        ratios = _trust_ratios(weight_norms, update_norms, group["trust_clip"])
        torch._foreach_addcmul_(parameters, updates, ratios.unbind(), value=-group["lr"])


def _by_device_and_dtype(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Those with a gradient, in lists that foreach operations take at once."""
    lists: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            lists.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return lists.values()


def _dense_grad(parameter: Tensor) -> Tensor:
    grad = parameter.grad
    assert grad is not None
    if not parameter.is_floating_point():
        raise TypeError(f"expected real floating-point parameters, got {parameter.dtype}")
    if grad.layout != torch.strided:
        raise ValueError(f"expected dense gradients, got {grad.layout}")
    return grad


def _is_scaled(group: dict[str, Any]) -> bool:
    return group["trust_ratio"] == "all" or (group["trust_ratio"] == "decayed" and group["weight_decay"] > 0)


def _norm_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)  # float16 ends at 65504


def _trust_ratios(weight_norm: Tensor, update_norm: Tensor, clip: float | None) -> Tensor:
    ratio = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
    return ratio if clip is None else ratio.clamp_(max=clip)
