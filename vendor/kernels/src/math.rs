//! Functions of vectors.

use crate::simd::Simd;

/// `e^x`, to 2 units in the last place; NaN for NaN, and the nearest normal numbers where the result would be beyond these.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The constants come first: the second operand is what NaN comes out of.
    let x = s.min(s.splat(88.0), s.max(s.splat(-87.3), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let whole = s.to_f(n);
    // x - n ln 2, in two steps, so that nothing is lost.
    let r = s.fma(whole, s.splat(-0.693_359_4), x);
    let r = s.fma(whole, s.splat(2.121_944_4e-4), r);
    // Taylor's series, whose remainder at ln 2 / 2 is 2^-27.
    let mut p = s.splat(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, s.exp2_i(n))
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    // Below, where `exp` ends, it is zero but for 35 decimals.
    let x = s.max(s.splat(-88.0), x);
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}
