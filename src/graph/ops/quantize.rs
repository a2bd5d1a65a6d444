//! Activations in 8 bits.

use ggml::{Op, Parts, Source};
use kernels::{Isa, token_bytes};

/// Words of a token's activations of `k` inputs: what [`Quantize`] makes is I32 `[words(k), n_tokens]`.
pub fn words(k: usize) -> usize {
    token_bytes(k) / 4
}

/// `x` F32 `[k, n_tokens]` -> I32 `[words(k), n_tokens]`: its activations in 8 bits; with a gain F32 `[k]` as second source, of the
/// RMS norm of `x` times the gain.
#[derive(Debug)]
pub struct Quantize {
    /// Of the norm
    pub eps: f32,
}

impl Op for Quantize {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let bytes = token_bytes(sources[0].ne()[0]);
        while let Some(mut out) = parts.next() {
            for (i, out) in out.rows().zip(out.bytes().chunks_exact_mut(bytes)) {
                quantize_row(&sources[0], sources.get(1), i, self.eps, out);
            }
        }
    }
}

/// The activations of row `i` of `x`; with a `gain` those of its RMS norm.
fn quantize_row(x: &Source, gain: Option<&Source>, i: usize, eps: f32, out: &mut [u8]) {
    let x = x.row::<f32>(i);
    match gain {
        Some(gain) => Isa::best().rms_norm_quantize(x, gain.row::<f32>(0), eps, out),
        None => Isa::best().quantize(x, out),
    }
}

/// The activations of all rows of `x`, one after the other; see [`quantize_row`].
pub fn quantize_rows(x: &Source, gain: Option<&Source>, eps: f32) -> Vec<u8> {
    let [k, n, ..] = x.ne();
    let mut acts = vec![0u8; n * token_bytes(k)];
    for (i, acts) in acts.chunks_exact_mut(token_bytes(k)).enumerate() {
        quantize_row(x, gain, i, eps, acts);
    }
    acts
}
