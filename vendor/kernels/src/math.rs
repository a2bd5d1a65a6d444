//! Functions of vectors.

use crate::isa::Simd;

/// `e^x`, to 2 units in the last place. Where the result would be no normal number it is about the nearest of these: `e^x` for an `x`
/// within -87.3 and 88. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The constants are first operands, as the result is the second one if that is NaN.
    let x = s.min(s.splat(88.0), s.max(s.splat(-87.3), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let whole = s.to_f(n);
    // x - n ln 2 in two steps, with ln 2 as a sum of a short number, whose product is exact, and a small one.
    let r = s.fma(whole, s.splat(-0.693_359_4), x);
    let r = s.fma(whole, s.splat(2.121_944_4e-4), r);
    // Taylor's series: at most ln 2 / 2 from zero its remainder is below 2^-27.
    let mut p = s.splat(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, s.exp2_i(n))
}

/// `tanh(x)`
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // 1 - 2 / (e^2x + 1). From 44 on `exp` is at its end, where the fraction is far below what the result can show.
    let e = exp(s, s.add(x, x));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))))
}

/// GELU in its form with the hyperbolic tangent: `x / 2 * (1 + tanh(y))`, where `y` is [`gelu_argument`]. That is `x / (1 + e^-2y)`.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    // `exp` ends at 88. For a smaller `x` the result is within 1e-36 of zero.
    let x = s.max(s.splat(-10.0), x);
    let square = s.mul(x, x);
    // -2y
    let y = s.mul(x, s.fma(square, s.splat(-2.0 * GELU_A * GELU_B), s.splat(-2.0 * GELU_A)));
    s.div(x, s.add(s.splat(1.0), exp(s, y)))
}

/// The square root of 2 / pi, and the weight of the cube: `y = A (x + B x^3)`.
const GELU_A: f32 = 0.797_884_6;
const GELU_B: f32 = 0.044_715;

/// What the hyperbolic tangent of [`gelu`] is taken of.
fn gelu_argument(x: f32) -> f32 {
    GELU_A * x * (1.0 + GELU_B * x * x)
}

/// What a gated MLP does to the product of its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
    Gelu,
}

impl Activation {
    /// Of a vector.
    #[inline(always)]
    pub(crate) fn of<S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Activation::Silu => silu(s, x),
            Activation::Gelu => gelu(s, x),
        }
    }

    /// Of a number.
    pub(crate) fn of_one(self, x: f32) -> f32 {
        match self {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => x / (1.0 + (-2.0 * gelu_argument(x)).exp()),
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    // `exp` ends at 88. For a smaller `x` the result is within 1e-36 of zero.
    let x = s.max(s.splat(-88.0), x);
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}
