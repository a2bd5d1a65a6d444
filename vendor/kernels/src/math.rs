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

/// `x / (1 + e^-x)`
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    // `exp` ends at 88. For a smaller `x` the result is within 1e-36 of zero.
    let x = s.max(s.splat(-88.0), x);
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}
