//! Activations in 8 bits.

use std::ops::Range;

use ggml::{Division, Op, Parts, Source};
use kernels::{Isa, token_bytes};

/// Words of a token's activations of `k` inputs: what [`Quantize`] makes is I32 `[words(k), n_tokens]`.
pub fn words(k: usize) -> usize {
    token_bytes(k) / 4
}

/// `x` F32 `[k, n_tokens]` -> I32 `[words(k), n_tokens]`: its activations in 8 bits; with a gain F32 `[k]` as second source, of the
/// RMS norm of `x` times the gain. Tokens lie in tiles of [`Isa::tile_tokens`].
#[derive(Debug)]
pub struct Quantize {
    /// Of the norm
    pub eps: f32,
    /// Four groups have the same scale, see [`super::share_scales`]
    pub shares_scales: bool,
}

impl Op for Quantize {
    fn division(&self, ne: [usize; 4]) -> Division {
        Division { rows: Isa::best().tile_tokens(), columns: ne[0] }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let tokens: Vec<&[f32]> = out.rows().map(|i| sources[0].row(i)).collect();
            quantize(&tokens, sources.get(1), self.eps, self.shares_scales, out.bytes());
        }
    }
}

/// A tile of activations; with a `gain` of the tokens' RMS norms.
fn quantize(tokens: &[&[f32]], gain: Option<&Source>, eps: f32, shares_scales: bool, tile: &mut [u8]) {
    match gain {
        Some(gain) => Isa::best().rms_norm_quantize(tokens, gain.row::<f32>(0), eps, shares_scales, tile),
        None => Isa::best().quantize(tokens, shares_scales, tile),
    }
}

/// The activations of some rows of `x`, in one tile; see [`Quantize`].
pub fn quantize_rows(x: &Source, rows: Range<usize>, gain: Option<&Source>, eps: f32, shares_scales: bool) -> Vec<u8> {
    let mut acts = vec![0u8; rows.len() * token_bytes(x.ne()[0])];
    let tokens: Vec<&[f32]> = rows.map(|i| x.row(i)).collect();
    quantize(&tokens, gain, eps, shares_scales, &mut acts);
    acts
}
