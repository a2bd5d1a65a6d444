//! What types have whose rows come apart into codes, scales and minima: see [`Weight::unpack`].

use super::{SHARE, Unpack, Weight};
use crate::acts::{Acts, GROUP};
use crate::gemv::{GemvActs, PIECE, Sums};
use crate::isa::Simd;

/// Inputs that are unpacked at once: the largest block, or several smaller ones.
pub(crate) const INPUTS: usize = 256;

/// Parts of [`INPUTS`] inputs.
pub(crate) struct Parts {
    pub codes: [u8; INPUTS],
    pub scales: [f32; INPUTS / SHARE],
    pub minima: [f32; INPUTS / SHARE],
}

impl Parts {
    pub const EMPTY: Parts = Parts { codes: [0; INPUTS], scales: [0.0; 16], minima: [0.0; 16] };
}

/// Bytes of [`INPUTS`] inputs.
pub(crate) const fn bytes<W: Weight>() -> usize {
    let block = W::BLOCK.expect("a type that comes apart has one");
    INPUTS / block.inputs * block.bytes
}

/// Unpacks the first [`INPUTS`] inputs of a row, or all that there are, and zeros behind them.
#[inline(always)]
pub(crate) fn unpack<S: Simd, W: Weight>(s: S, weight: W, row: &[u8], to: &mut Parts) {
    let block = W::BLOCK.expect("a type that comes apart has one");
    if row.len() < bytes::<W>() {
        *to = Parts::EMPTY;
    }
    let Parts { codes, scales, minima } = to;
    let parts = codes.chunks_exact_mut(block.inputs);
    let parts =
        parts.zip(scales.chunks_exact_mut(block.inputs / SHARE)).zip(minima.chunks_exact_mut(block.inputs / SHARE));
    for (b, ((codes, scales), minima)) in row.chunks_exact(block.bytes).zip(parts) {
        weight.unpack(s, b, Unpack { codes, scales, minima });
    }
}

/// Whether codes have a sign.
const fn is_signed<W: Weight>() -> bool {
    W::CODES.expect("a type that comes apart").bits == 8
}

/// See [`Weight::decode`].
#[inline(always)]
pub(crate) fn decode<S: Simd, W: Weight>(s: S, weight: W, row: &[u8], out: &mut [f32]) {
    let mut parts = Parts::EMPTY;
    for (row, out) in row.chunks(bytes::<W>()).zip(out.chunks_mut(INPUTS)) {
        unpack(s, weight, row, &mut parts);
        let shares = parts.scales.iter().zip(&parts.minima).zip(parts.codes.chunks_exact(SHARE));
        for (((scale, minimum), codes), out) in shares.zip(out.chunks_exact_mut(SHARE)) {
            for (x, c) in out.iter_mut().zip(codes) {
                let code = if is_signed::<W>() { f32::from(*c as i8) } else { f32::from(*c) };
                *x = scale * code + minimum;
            }
        }
    }
}

/// Activations in the order of inputs, in steps of 64; scales and sums for each [`SHARE`] inputs, filled up to whole [`INPUTS`].
#[inline(always)]
pub(crate) fn gemv_acts(acts: Acts) -> GemvActs {
    let n_steps = acts.k().div_ceil(INPUTS) * (INPUTS / 64);
    let mut made = GemvActs::arrange_steps(acts, n_steps, 64, None, |step, i| Some(step * 64 + i * PIECE));
    made.add_shares(acts, n_steps * 64 / GROUP);
    made
}

/// See [`Weight::dot`].
#[inline(always)]
pub(crate) fn dot<S: Simd, W: Weight, const T: usize>(s: S, weight: W, row: &[u8], acts: &GemvActs) -> Sums<S, T> {
    const N: usize = INPUTS / SHARE;
    let mut acc = [[s.splat(0.0); 3]; T];
    let mut parts = Parts::EMPTY;
    let n_shares = acts.sums.len() / T;
    let vector = 4 * S::LANES;
    // Where weights are bytes without sign, codes with sign are larger by this.
    let excess = if is_signed::<W>() { S::OFFSET } else { 0 };
    let offset = s.splat_i(i32::from_le_bytes([excess as u8; 4]));
    for (i, (row, x)) in row.chunks(bytes::<W>()).zip(acts.codes.chunks_exact(INPUTS / 64 * T)).enumerate() {
        unpack(s, weight, row, &mut parts);
        if excess != 0 {
            for (minimum, scale) in parts.minima.iter_mut().zip(&parts.scales) {
                *minimum -= excess as f32 * scale;
            }
        }
        let mut scales = [[0.0f32; N]; T];
        for (t, scales) in scales.iter_mut().enumerate() {
            let at = t * n_shares + N * i;
            let (x_scales, x_sums) = (&acts.scales[at..at + N], &acts.sums[at..at + N]);
            for j in (0..N).step_by(S::LANES) {
                let product = s.mul(s.load_f(&parts.scales[j..]), s.load_f(&x_scales[j..]));
                s.store_f(product, &mut scales[j..]);
                acc[t][2] = s.fma(s.load_f(&parts.minima[j..]), s.load_f(&x_sums[j..]), acc[t][2]);
            }
        }
        for (v, codes) in parts.codes.chunks_exact(vector).enumerate() {
            let codes = s.load_i(codes);
            let codes = if excess != 0 { s.add_bytes(codes, offset) } else { codes };
            for (t, (acc, scales)) in acc.iter_mut().zip(&scales).enumerate() {
                let x = s.load_i(&x[v * vector / 64 * T + t].0[v * vector % 64..]);
                let dots = match is_signed::<W>() {
                    true => s.dot(s.splat_i(0), codes, x),
                    false => s.whole(s.add_products(s.splat_i(0), codes, x)),
                };
                acc[v % 2] = s.fma(s.to_f(dots), s.each_four(&scales[v * S::LANES / 4..]), acc[v % 2]);
            }
        }
    }
    acc
}

/// A byte for each of the 32 bits of four bytes: `value` where the bit is set, else 0.
#[inline(always)]
pub(crate) fn spread_bits(bits: &[u8], value: u8) -> [u8; 32] {
    let mut out = [0u8; 32];
    for (out, bits) in out.chunks_exact_mut(8).zip(bits) {
        // Each byte of a word of 8 gets all bits, and keeps one of them.
        let each = (u64::from(*bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        // A bit that is kept makes a carry into the byte's upper bit.
        let set = (each + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101;
        out.copy_from_slice(&(set * u64::from(value)).to_le_bytes());
    }
    out
}
