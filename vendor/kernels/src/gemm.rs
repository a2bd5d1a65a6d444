//! Gemm: products of a matrix with many tokens, a panel of its rows at a time.

use crate::acts::{Acts, GROUP, Token};
use crate::isa::{Kernel, Simd};
use crate::math::Activation;
use crate::panel::{VECS, group_bytes, panel_rows};

/// Where a gemm writes its results.
pub trait Out {
    /// The floats of token `t`, one for each row that is multiplied; there may be more of them.
    fn token(&mut self, t: usize) -> &mut [f32];
}

/// Products of `T` tokens with the rows of a panel.
#[inline(always)]
fn tile<S: Simd, const T: usize>(s: S, panel: &[u8], tokens: &[Token; T]) -> [[S::F; VECS]; T] {
    let rows = panel_rows::<S>();
    let mut out = [[s.splat(0.0); VECS]; T];
    for (g, group) in panel.chunks_exact(group_bytes::<S>()).enumerate() {
        let (weights, scales) = group.split_at(rows * GROUP);
        let codes: [&[u8; GROUP]; T] = std::array::from_fn(|t| tokens[t].codes(g));
        let mut acc = [[s.splat_i(0); VECS]; T];
        if S::OFFSET != 0 {
            // Weights are stored with an offset. What it adds to the product is subtracted beforehand.
            for t in 0..T {
                acc[t] = [s.splat_i(-S::OFFSET * tokens[t].sum(g)); VECS];
            }
        }
        for (i, w) in weights.chunks_exact(rows * 4).enumerate() {
            let w = [s.load_i(w), s.load_i(&w[S::LANES * 4..])];
            for t in 0..T {
                let x = s.splat_i(i32::from_le_bytes(codes[t][4 * i..][..4].try_into().expect("four bytes")));
                for v in 0..VECS {
                    acc[t][v] = s.dot(acc[t][v], w[v], x);
                }
            }
        }
        let scales = [s.as_f(s.load_i(scales)), s.as_f(s.load_i(&scales[S::LANES * 4..]))];
        for t in 0..T {
            let x = s.splat(tokens[t].scale(g));
            for v in 0..VECS {
                out[t][v] = s.fma(s.to_f(acc[t][v]), s.mul(scales[v], x), out[t][v]);
            }
        }
    }
    out
}

/// See [`crate::Isa::gemm`] and [`crate::Isa::gemm_gated`].
pub(crate) struct Gemm<'a> {
    pub first: &'a [u8],
    /// With a second panel the product is `act(first) * second`.
    pub second: Option<(&'a [u8], Activation)>,
    pub n_rows: usize,
    pub acts: Acts<'a>,
    pub tokens: &'a [usize],
    pub out: &'a mut dyn Out,
}

impl Kernel for Gemm<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Gemm { first, second, n_rows, acts, tokens, out } = self;
        let n_bytes = acts.n_groups() * group_bytes::<S>();
        assert!(
            n_rows <= panel_rows::<S>() && first.len() == n_bytes && second.is_none_or(|(p, _)| p.len() == n_bytes),
            "panels of these activations"
        );
        let mut whole = [0.0f32; 64];
        let mut rest = tokens;
        while !rest.is_empty() {
            // No closure: it would be without the instructions, see `Simd`.
            macro_rules! run {
                ($t:literal) => {{
                    let (now, later) = rest.split_at($t);
                    let x: [Token; $t] = std::array::from_fn(|i| acts.token(now[i]));
                    let mut products = tile::<S, $t>(s, first, &x);
                    if let Some((second, act)) = second {
                        for (a, b) in products.iter_mut().zip(tile::<S, $t>(s, second, &x)) {
                            for v in 0..VECS {
                                a[v] = s.mul(act.of(s, a[v]), b[v]);
                            }
                        }
                    }
                    for (&token, x) in now.iter().zip(&products) {
                        for v in 0..VECS {
                            s.store_f(x[v], &mut whole[v * S::LANES..]);
                        }
                        out.token(token)[..n_rows].copy_from_slice(&whole[..n_rows]);
                    }
                    rest = later;
                }};
            }
            match rest.len().min(S::GEMM_TOKENS) {
                6.. => run!(6),
                5 => run!(5),
                4 => run!(4),
                3 => run!(3),
                2 => run!(2),
                _ => run!(1),
            }
        }
    }
}
