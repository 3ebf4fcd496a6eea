"""Activation functions and their derivatives as Triton functions of float32 values.

Exact GELU is x * Phi(x), Phi the normal distribution function. With a = |x| <= 8 and Phi(-a) = 2^P(a), P of degree 6:

    gelu(x)  = max(x, 0) - a * 2^P(a)
    gelu'(x) = s where x <= 0, 1 - s where x > 0;  s = 2^P(a) - a * phi(a)

and for larger a the products with 2^P are 0. No term cancels, and the only special instruction is one exp2 (two with the
derivative): a third of the cost of erf. P is a weighted minimax fit of log2(Phi(-a)). Against float64 the error of the value is
at most 2.6e-7, and of its 16-bit rounding 0.55 of the last place; that of the derivative is 1.2e-6. This is enough for 16 bits
but not for float32, so float32 tensors (`FULL`) use erf. NaN stays NaN.
"""

import triton
import triton.language as tl

RSQRT_2 = tl.constexpr(0.7071067811865476)
RSQRT_2PI = tl.constexpr(0.3989422804014327)
LIMIT = tl.constexpr(8.0)  # Phi(-8) = 6e-16; P is not fitted beyond it
WIDE_CLAMP = tl.constexpr(16.0)  # beyond it every term of float32 is 0 or overflows
TWO_Z_SCALE = tl.constexpr(1.5957691216057308)  # 2 * sqrt(2 / pi)
TANH_CUBIC = tl.constexpr(0.044715)
EXP2_SCALE = tl.constexpr(-2.302208198144325)  # -TWO_Z_SCALE * log2(e)


@triton.jit
def _normal_tail(a):
    """Phi(-a) for a in [0, 8]."""
    p = 3.3892625651787966e-05
    p = p * a - 0.0007695740787312388
    p = p * a + 0.008053689263761044
    p = p * a - 0.05331423506140709
    p = p * a - 0.4588972330093384
    p = p * a - 1.1511389017105103
    p = p * a - 1.000002145767212
    return tl.exp2(p)


@triton.jit
def _exp_2z(x):
    """exp(-2 * z) of the tanh GELU, x * sigmoid(2 * z) with z = sqrt(2 / pi) * (x + 0.044715 * x^3)."""
    return tl.exp2(x * (x * x * TANH_CUBIC + 1.0) * EXP2_SCALE)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, FULL: tl.constexpr):
    """ACTIVATION(x) for float32 x. FULL: whether the result is stored in float32, not in 16 bits."""
    tl.static_assert(ACTIVATION == "gelu_erf" or ACTIVATION == "gelu_tanh" or ACTIVATION == "relu")
    if ACTIVATION == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu_tanh":
        y = x / (_exp_2z(x) + 1.0)
    elif FULL:
        y = 0.5 * x * (tl.erf(x * RSQRT_2) + 1.0)
    else:
        a = tl.abs(x)
        y = tl.maximum(x, 0.0) - tl.where(a > LIMIT, 0.0, a * _normal_tail(a))
    return y


@triton.jit
def activation_derivative(x, ACTIVATION: tl.constexpr, FULL: tl.constexpr):
    """The derivative of ACTIVATION at float32 x. FULL: as in `activate`."""
    tl.static_assert(ACTIVATION == "gelu_erf" or ACTIVATION == "gelu_tanh" or ACTIVATION == "relu")
    if ACTIVATION == "relu":
        slope = tl.where(x <= 0.0, 0.0, 1.0)  # as PyTorch: the gradient passes where x is NaN
    elif ACTIVATION == "gelu_tanh":
        a = tl.minimum(tl.abs(x), WIDE_CLAMP, propagate_nan=tl.PropagateNan.ALL)
        e = _exp_2z(a)
        r = 1.0 / (e + 1.0)
        two_z_slope = (a * a * TANH_CUBIC * 3.0 + 1.0) * TWO_Z_SCALE
        s = (1.0 - a * two_z_slope * r) * (e * r)
        slope = tl.where(x > 0.0, 1.0 - s, s)
    elif FULL:
        x = tl.minimum(x, WIDE_CLAMP, propagate_nan=tl.PropagateNan.ALL)
        x = tl.maximum(x, -WIDE_CLAMP, propagate_nan=tl.PropagateNan.ALL)
        slope = 0.5 * (tl.erf(x * RSQRT_2) + 1.0) + x * RSQRT_2PI * tl.exp2(x * x * -0.7213475204444817)
    else:
        a = tl.abs(x)
        # log2(phi(a)) = -a^2 / (2 ln 2) - log2(sqrt(2 pi))
        s = _normal_tail(a) - a * tl.exp2(a * a * -0.7213475204444817 - 1.3257480647361592)
        s = tl.where(a > LIMIT, 0.0, s)  # a comparison with NaN is false: NaN stays
        slope = tl.where(x > 0.0, 1.0 - s, s)
    return slope
