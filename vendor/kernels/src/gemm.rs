//! Gemm: products of a matrix with many tokens, some panels of its rows at a time.
//!
//! A tile is some tokens times a panel's rows, whose sums fit into registers. The tokens' activations are arranged once for all panels, which
//! are read from the processor's second nearest memory once for each tile.

use crate::acts::{Acts, GROUP};
use crate::isa::{Kernel, Simd};
use crate::math::Activation;
use crate::panel::{VECS, group_bytes, panel_rows};

/// Where a gemm writes its results.
pub trait Out {
    /// The floats of token `t`, one for each row that is multiplied; there may be more of them.
    fn token(&mut self, t: usize) -> &mut [f32];
}

/// A token's activations of a group.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Group {
    /// In fours
    codes: [[u8; 4]; GROUP / 4],
    scale: f32,
    /// See [`Token::start`](crate::acts::Token::start)
    start: i32,
}

/// Writes the activations of `T` tokens in the order in which a tile reads them: so it has one place to read from, and not one for each token.
#[inline(always)]
fn arrange<const T: usize>(acts: Acts, tokens: &[usize; T], arranged: &mut Vec<Group>) {
    arranged.resize(T * acts.n_groups(), Group::default());
    for (t, &token) in tokens.iter().enumerate() {
        let token = acts.token(token);
        for (g, to) in arranged.as_chunks_mut::<T>().0.iter_mut().enumerate() {
            to[t].codes.copy_from_slice(token.codes(g).as_chunks().0);
            to[t].scale = token.scale(g);
            to[t].start = token.start(g);
        }
    }
}

/// Products of `T` tokens with the rows of a panel.
#[inline(always)]
fn tile<S: Simd, const T: usize>(s: S, panel: &[u8], tokens: &[[Group; T]]) -> [[S::F; VECS]; T] {
    let rows = panel_rows::<S>();
    let mut out = [[s.splat(0.0); VECS]; T];
    for (group, tokens) in panel.chunks_exact(group_bytes::<S>()).zip(tokens) {
        let (weights, scales) = group.split_at(rows * GROUP);
        let mut acc = [[s.splat_i(0); VECS]; T];
        if S::OFFSET != 0 {
            // Weights are stored with an offset, of 128. What it adds to the product is subtracted beforehand.
            for t in 0..T {
                acc[t] = [s.splat_i(tokens[t].start); VECS];
            }
        }
        for (i, w) in weights.chunks_exact(rows * 4).enumerate() {
            let w = [s.load_i(w), s.load_i(&w[S::LANES * 4..])];
            for t in 0..T {
                let x = s.splat_i(i32::from_le_bytes(tokens[t].codes[i]));
                for v in 0..VECS {
                    acc[t][v] = s.dot(acc[t][v], w[v], x);
                }
            }
        }
        let scales = [s.as_f(s.load_i(scales)), s.as_f(s.load_i(&scales[S::LANES * 4..]))];
        for t in 0..T {
            let x = s.splat(tokens[t].scale);
            for v in 0..VECS {
                out[t][v] = s.fma(s.to_f(acc[t][v]), s.mul(scales[v], x), out[t][v]);
            }
        }
    }
    out
}

/// See [`crate::Isa::gemm`] and [`crate::Isa::gemm_gated`].
pub(crate) struct Gemm<'a> {
    /// Panels, one after the other
    pub first: &'a [u8],
    /// With as many others the product is `act(first) * second`.
    pub second: Option<(&'a [u8], Activation)>,
    pub n_rows: usize,
    pub acts: Acts<'a>,
    pub tokens: &'a [usize],
    /// Room for the activations of a tile's tokens
    pub arranged: &'a mut Vec<Group>,
    pub out: &'a mut dyn Out,
}

impl Gemm<'_> {
    /// Multiplies the panels with `T` tokens.
    #[inline(always)]
    fn multiply<S: Simd, const T: usize>(&mut self, s: S, tokens: &[usize; T]) {
        let (rows, n_bytes) = (panel_rows::<S>(), self.acts.n_groups() * group_bytes::<S>());
        arrange(self.acts, tokens, self.arranged);
        let (groups, _) = self.arranged.as_chunks::<T>();
        let mut whole = [0.0f32; 64];
        for (p, panel) in self.first.chunks_exact(n_bytes).enumerate() {
            let mut products = tile(s, panel, groups);
            if let Some((second, act)) = self.second {
                let second = tile(s, &second[p * n_bytes..][..n_bytes], groups);
                for (a, b) in products.iter_mut().zip(second) {
                    for v in 0..VECS {
                        a[v] = s.mul(act.of(s, a[v]), b[v]);
                    }
                }
            }
            let range = p * rows..self.n_rows.min((p + 1) * rows);
            for (&token, x) in tokens.iter().zip(&products) {
                for v in 0..VECS {
                    s.store_f(x[v], &mut whole[v * S::LANES..]);
                }
                self.out.token(token)[range.clone()].copy_from_slice(&whole[..range.len()]);
            }
        }
    }
}

impl Kernel for Gemm<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(mut self, s: S) {
        let n_bytes = self.n_rows.div_ceil(panel_rows::<S>()) * self.acts.n_groups() * group_bytes::<S>();
        assert!(
            self.first.len() == n_bytes && self.second.is_none_or(|(p, _)| p.len() == n_bytes),
            "panels of these activations"
        );
        let mut rest = self.tokens;
        while !rest.is_empty() {
            // No closure: it would be without the instructions, see `Simd`.
            macro_rules! run {
                ($t:literal) => {{
                    let (now, later) = rest.split_first_chunk::<$t>().expect("as many tokens");
                    self.multiply(s, now);
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
