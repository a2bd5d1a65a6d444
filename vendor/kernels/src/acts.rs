//! Activations in 8 bits, as matrix products take them, and the operations that make them.
//!
//! A token's `k` activations are groups of [`GROUP`], filled up with zeros to an even number of groups. First come the codes of all groups,
//! bytes with sign within -127 and 127, then for each group its scale (F32) and the sum of its codes times -128 (I32), with which products
//! begin whose weights are stored with 128 too much. An activation is `scale * code`.

use crate::isa::{Kernel, Simd};
use crate::math::Activation;

/// Inputs of a group: they share a scale.
pub const GROUP: usize = 32;

/// Inputs of two groups: codes are filled up to a multiple of this.
pub(crate) const SPAN: usize = 2 * GROUP;

/// Bytes of a token's `k` activations, as [`crate::Isa::quantize`] writes them.
pub const fn token_bytes(k: usize) -> usize {
    2 * k.div_ceil(SPAN) * (GROUP + 8)
}

/// Activations of tokens, one after the other, each in [`token_bytes`] bytes.
#[derive(Debug, Clone, Copy)]
pub struct Acts<'a> {
    bytes: &'a [u8],
    k: usize,
}

impl<'a> Acts<'a> {
    /// The activations of `bytes.len() / token_bytes(k)` tokens.
    ///
    /// # Panics
    /// If `k` is 0, or `bytes` are not whole tokens.
    pub fn new(bytes: &'a [u8], k: usize) -> Acts<'a> {
        assert!(k > 0 && bytes.len().is_multiple_of(token_bytes(k)), "whole tokens");
        Acts { bytes, k }
    }

    /// The number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.bytes.len() / token_bytes(self.k)
    }

    /// Inputs of a token.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Groups of a token.
    #[inline(always)]
    pub(crate) fn n_groups(&self) -> usize {
        2 * self.k.div_ceil(SPAN)
    }

    /// One token.
    #[inline(always)]
    pub(crate) fn token(&self, t: usize) -> Token<'a> {
        let n = token_bytes(self.k);
        let (codes, tail) = self.bytes[t * n..(t + 1) * n].split_at(self.n_groups() * GROUP);
        Token { codes, tail }
    }
}

/// One token's activations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    codes: &'a [u8],
    /// Scales and starts
    tail: &'a [u8],
}

impl<'a> Token<'a> {
    /// Codes, signed bytes, of group `g`.
    #[inline(always)]
    pub fn codes(&self, g: usize) -> &'a [u8; GROUP] {
        self.codes[g * GROUP..][..GROUP].try_into().expect("a group")
    }

    /// Scale of group `g`.
    #[inline(always)]
    pub fn scale(&self, g: usize) -> f32 {
        f32::from_le_bytes(self.tail[8 * g..][..4].try_into().expect("four bytes"))
    }

    /// What a product with group `g` begins with where weights have 128 too much.
    #[inline(always)]
    pub fn start(&self, g: usize) -> i32 {
        i32::from_le_bytes(self.tail[8 * g + 4..][..4].try_into().expect("four bytes"))
    }

    /// Sum of the codes of group `g`.
    #[inline(always)]
    pub fn sum(&self, g: usize) -> i32 {
        self.start(g) / -128
    }
}

/// The scale, and its inverse, that make 127 of the magnitude `largest`. A group with a NaN or infinity becomes NaN as a whole.
#[inline(always)]
pub(crate) fn scales(largest: f32) -> (f32, f32) {
    match largest {
        // The inverse of a smaller scale would overflow.
        ..=1e-35 => (0.0, 0.0),
        _ if largest < f32::INFINITY => (largest / 127.0, 127.0 / largest),
        _ => (f32::NAN, 0.0),
    }
}

/// Writes the activations of one token: those of `factor * x * gain`, or without gain of `factor * x`.
#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32], factor: f32, gain: Option<&[f32]>, out: &mut [u8]) {
    assert_eq!(out.len(), token_bytes(x.len()), "bytes of a token's activations");
    let n_groups = 2 * x.len().div_ceil(SPAN);
    let (codes, tail) = out.split_at_mut(n_groups * GROUP);
    let factor = s.splat(factor);
    let mut group = [0.0f32; GROUP];
    for (g, (codes, tail)) in codes.chunks_exact_mut(GROUP).zip(tail.chunks_exact_mut(8)).enumerate() {
        let range = x.len().min(g * GROUP)..x.len().min((g + 1) * GROUP);
        let (mut x, mut gain) = (&x[range.clone()], gain.map(|w| &w[range]));
        let mut padded = [[0.0f32; GROUP]; 2];
        if x.len() < GROUP {
            padded[0][..x.len()].copy_from_slice(x);
            if let Some(w) = gain {
                padded[1][..w.len()].copy_from_slice(w);
            }
            (x, gain) = (&padded[0], gain.map(|_| &padded[1][..]));
        }
        let mut largest = s.splat(0.0);
        for i in (0..GROUP).step_by(S::LANES) {
            let mut v = s.mul(s.load_f(&x[i..]), factor);
            if let Some(w) = gain {
                v = s.mul(v, s.load_f(&w[i..]));
            }
            largest = s.max_abs(largest, v);
            s.store_f(v, &mut group[i..]);
        }
        let (scale, inverse) = scales(s.reduce_max_or_nan(largest));
        tail[..4].copy_from_slice(&scale.to_le_bytes());
        if scale.is_nan() {
            // No code stands for NaN: the scale does.
            codes.fill(0);
            tail[4..].fill(0);
            continue;
        }
        let inverse = s.splat(inverse);
        let mut sum = s.splat(0.0);
        for i in (0..GROUP).step_by(S::LANES) {
            let q = s.round(s.mul(s.load_f(&group[i..]), inverse));
            s.store_bytes(q, &mut codes[i..]);
            sum = s.add(sum, s.to_f(q));
        }
        tail[4..].copy_from_slice(&(-128 * s.reduce_sum(sum) as i32).to_le_bytes());
    }
}

/// The sum of squares.
#[inline(always)]
fn squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let whole = x.chunks_exact(S::LANES);
    let rest = whole.remainder();
    let mut sum = s.splat(0.0);
    for x in whole {
        let x = s.load_f(x);
        sum = s.fma(x, x, sum);
    }
    s.reduce_sum(sum) + rest.iter().map(|x| x * x).sum::<f32>()
}

/// See [`crate::Isa::quantize`].
pub(crate) struct Quantize<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [u8],
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        quantize(s, self.x, 1.0, None, self.out);
    }
}

/// See [`crate::Isa::rms_norm_quantize`].
pub(crate) struct RmsNormQuantize<'a> {
    pub x: &'a [f32],
    pub gain: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [u8],
}

impl Kernel for RmsNormQuantize<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let mean = squares(s, self.x) / self.x.len() as f32;
        quantize(s, self.x, 1.0 / (mean + self.eps).sqrt(), Some(self.gain), self.out);
    }
}

/// See [`crate::Isa::gated`].
pub(crate) struct Gated<'a> {
    pub act: Activation,
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        assert!(self.gate.len() == self.out.len() && self.up.len() == self.out.len(), "three slices of one length");
        let (mut gate, mut up, mut out) =
            (self.gate.chunks_exact(S::LANES), self.up.chunks_exact(S::LANES), self.out.chunks_exact_mut(S::LANES));
        for ((g, u), o) in gate.by_ref().zip(up.by_ref()).zip(out.by_ref()) {
            s.store_f(s.mul(self.act.of(s, s.load_f(g)), s.load_f(u)), o);
        }
        for ((&g, &u), o) in gate.remainder().iter().zip(up.remainder()).zip(out.into_remainder()) {
            *o = self.act.of_one(g) * u;
        }
    }
}
