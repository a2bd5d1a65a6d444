//! Activations in 8 bits, as matrix products take them, and the operations that make them.
//!
//! A token's `k` activations are groups of [`GROUP`], filled up with zeros to an even number of groups. An activation is `scale * code`. Each group has
//! a scale of its own, or, where the weights are of super-blocks, four groups ([`SHARING`]) have the same: so products of these groups are added
//! as integers. With the codes, bytes with sign within -127 and 127, lies what products need of a group:
//!
//! ```text
//! codes                                                      32 bytes
//! scale                                                      F32
//! sum of the codes times -128: with it products begin whose
//!   weights are stored with 128 too much                     I32
//! sum of the activations                                     F32
//! sums of the codes of both halves                           2 x I16
//! ```
//!
//! Tokens lie in tiles: as many as a gemm multiplies at once ([`crate::Isa::tile_tokens`]), in the order in which it reads them. A tile has group
//! after group, of each the tokens one after the other. The last tile has the tokens that are left.

use crate::isa::{Kernel, Simd};
use crate::math::Activation;

/// Inputs of a group: they share a scale.
pub const GROUP: usize = 32;

/// Groups that have the same scale where weights are of super-blocks, see [`crate::Format::shares_scales`]: 128 inputs. With all 256 inputs of a
/// super-block products are hardly faster, and the activations that are largest make the codes of others coarser.
pub(crate) const SHARING: usize = 4;

/// Inputs of two groups: codes are filled up to a multiple of this.
pub(crate) const SPAN: usize = 2 * GROUP;

/// Bytes of a token's group.
pub(crate) const GROUP_BYTES: usize = GROUP + 16;

/// A token's activations of a group: see the file's head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a>(pub &'a [u8; GROUP_BYTES]);

impl<'a> Group<'a> {
    /// Four bytes, whose number is counted in fours.
    #[inline(always)]
    fn word(self, i: usize) -> [u8; 4] {
        self.0[4 * i..][..4].try_into().expect("four bytes")
    }

    /// Codes, signed bytes.
    #[inline(always)]
    pub fn codes(self) -> &'a [u8; GROUP] {
        self.0.first_chunk().expect("codes")
    }

    /// Four codes, whose number is counted in fours.
    #[inline(always)]
    pub fn four(self, i: usize) -> i32 {
        i32::from_le_bytes(self.word(i))
    }

    #[inline(always)]
    pub fn scale(self) -> f32 {
        f32::from_le_bytes(self.word(GROUP / 4))
    }

    /// What a product begins with where weights have 128 too much.
    #[inline(always)]
    pub fn start(self) -> i32 {
        i32::from_le_bytes(self.word(GROUP / 4 + 1))
    }

    /// Sum of the activations.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        f32::from_le_bytes(self.word(GROUP / 4 + 2))
    }

    /// Sum of the codes of a half.
    #[inline(always)]
    pub fn half(self, half: usize) -> i32 {
        let at = GROUP + 12 + 2 * half;
        i32::from(i16::from_le_bytes([self.0[at], self.0[at + 1]]))
    }

    /// Sums of the codes of both halves, 16 bits each.
    #[inline(always)]
    pub fn halves(self) -> i32 {
        i32::from_le_bytes(self.word(GROUP / 4 + 3))
    }

    /// Sum of the codes.
    #[inline(always)]
    pub fn codes_sum(self) -> i32 {
        self.half(0) + self.half(1)
    }
}

/// Bytes of a token's `k` activations.
pub const fn token_bytes(k: usize) -> usize {
    2 * k.div_ceil(SPAN) * GROUP_BYTES
}

/// Activations of tokens, each in [`token_bytes`] bytes.
#[derive(Debug, Clone, Copy)]
pub struct Acts<'a> {
    bytes: &'a [u8],
    k: usize,
    tile_tokens: usize,
    shares_scales: bool,
}

impl<'a> Acts<'a> {
    /// The activations of `bytes.len() / token_bytes(k)` tokens, in tiles of so many. Whether four groups have the same scale is what
    /// [`crate::Isa::quantize`] was told.
    ///
    /// # Panics
    /// If `k` or `tile_tokens` is 0, or `bytes` are not whole tokens.
    pub fn new(bytes: &'a [u8], k: usize, tile_tokens: usize, shares_scales: bool) -> Acts<'a> {
        assert!(k > 0 && tile_tokens > 0 && bytes.len().is_multiple_of(token_bytes(k)), "whole tokens");
        Acts { bytes, k, tile_tokens, shares_scales }
    }

    /// Whether four groups have the same scale.
    pub fn shares_scales(&self) -> bool {
        self.shares_scales
    }

    /// The number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.bytes.len() / token_bytes(self.k)
    }

    /// Inputs of a token.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The activations of some tokens, one after the other: in tiles of one.
    ///
    /// # Panics
    /// If a token is beyond those that there are.
    pub fn of(&self, tokens: &[usize]) -> Vec<u8> {
        let mut all = Vec::with_capacity(tokens.len() * token_bytes(self.k));
        for token in tokens.iter().map(|&t| self.token(t)) {
            (0..self.n_groups()).for_each(|g| all.extend_from_slice(token.group(g).0));
        }
        all
    }

    /// Groups of a token.
    #[inline(always)]
    pub(crate) fn n_groups(&self) -> usize {
        2 * self.k.div_ceil(SPAN)
    }

    /// The tile that begins with token `t`, and how many tokens it has; `None` if none does.
    #[inline(always)]
    pub(crate) fn tile(&self, t: usize) -> Option<(&'a [u8], usize)> {
        let n = self.tile_tokens.min(self.n_tokens().checked_sub(t)?);
        (t.is_multiple_of(self.tile_tokens))
            .then(|| (&self.bytes[t * token_bytes(self.k)..][..n * token_bytes(self.k)], n))
    }

    /// One token.
    #[inline(always)]
    pub(crate) fn token(&self, t: usize) -> Token<'a> {
        let at = t % self.tile_tokens;
        let (tile, n) = self.tile(t - at).expect("a tile");
        Token { bytes: &tile[at * GROUP_BYTES..], stride: n * GROUP_BYTES }
    }
}

/// One token's activations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    /// Of its tile, from its first group on
    bytes: &'a [u8],
    /// Bytes from a group to the token's next one
    stride: usize,
}

impl<'a> Token<'a> {
    /// Group `g`.
    #[inline(always)]
    pub fn group(&self, g: usize) -> Group<'a> {
        Group(self.bytes[g * self.stride..].first_chunk().expect("a group"))
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

/// Writes activations of one token: those of `factor * x * gain`, or without gain of `factor * x`. `groups` are where they go. `SHARE` groups each
/// have the same scale.
#[inline(always)]
fn quantize<'a, S: Simd, const SHARE: usize>(
    s: S,
    x: &[f32],
    factor: f32,
    gain: Option<&[f32]>,
    mut groups: impl Iterator<Item = &'a mut [u8; GROUP_BYTES]>,
) {
    let factor = s.splat(factor);
    let mut values = [[0.0f32; GROUP]; SHARE];
    for start in (0..x.len()).step_by(SHARE * GROUP) {
        let mut largest = s.splat(0.0);
        for (g, values) in values.iter_mut().enumerate() {
            let range = x.len().min(start + g * GROUP)..x.len().min(start + (g + 1) * GROUP);
            let (mut x, mut gain) = (&x[range.clone()], gain.map(|w| &w[range]));
            let mut padded = [[0.0f32; GROUP]; 2];
            if x.len() < GROUP {
                padded[0][..x.len()].copy_from_slice(x);
                if let Some(w) = gain {
                    padded[1][..w.len()].copy_from_slice(w);
                }
                (x, gain) = (&padded[0], gain.map(|_| &padded[1][..]));
            }
            for i in (0..GROUP).step_by(S::LANES) {
                let mut v = s.mul(s.load_f(&x[i..]), factor);
                if let Some(w) = gain {
                    v = s.mul(v, s.load_f(&w[i..]));
                }
                largest = s.max_abs(largest, v);
                s.store_f(v, &mut values[i..]);
            }
        }
        let (scale, inverse) = scales(s.reduce_max_or_nan(largest));
        for (values, out) in values.iter().zip(&mut groups) {
            let mut halves = [0i16; 2];
            // No code stands for NaN: the scale does.
            if scale.is_nan() {
                out.fill(0);
            } else {
                let inverse = s.splat(inverse);
                for (half, sum) in halves.iter_mut().enumerate() {
                    let mut of_half = s.splat(0.0);
                    for i in (half * GROUP / 2..(half + 1) * GROUP / 2).step_by(S::LANES) {
                        let q = s.round(s.mul(s.load_f(&values[i..]), inverse));
                        s.store_bytes(q, &mut out[i..]);
                        of_half = s.add(of_half, s.to_f(q));
                    }
                    *sum = s.reduce_sum(of_half) as i16;
                }
            }
            let sum = i32::from(halves[0]) + i32::from(halves[1]);
            out[GROUP..][..4].copy_from_slice(&scale.to_le_bytes());
            out[GROUP + 4..][..4].copy_from_slice(&(-128 * sum).to_le_bytes());
            out[GROUP + 8..][..4].copy_from_slice(&(sum as f32 * scale).to_le_bytes());
            out[GROUP + 12..][..2].copy_from_slice(&halves[0].to_le_bytes());
            out[GROUP + 14..].copy_from_slice(&halves[1].to_le_bytes());
        }
    }
    // With scales of their own, groups that fill up have not been reached.
    groups.for_each(|out| out.fill(0));
}

/// The groups that token `t` of `n` has in a tile.
#[inline(always)]
fn groups_of(tile: &mut [u8], t: usize, n: usize) -> impl Iterator<Item = &mut [u8; GROUP_BYTES]> {
    tile.as_chunks_mut().0.iter_mut().skip(t).step_by(n)
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

/// See [`crate::Isa::tile_tokens`].
pub(crate) struct TileTokens;

impl Kernel for TileTokens {
    type Out = usize;

    #[inline(always)]
    fn call<S: Simd>(self, _s: S) -> usize {
        S::GEMM_TOKENS
    }
}

/// See [`crate::Isa::quantize`] and [`crate::Isa::rms_norm_quantize`].
pub(crate) struct Quantize<'a> {
    pub tokens: &'a [&'a [f32]],
    /// Of an RMS norm that comes first, and what is added to the mean of squares
    pub norm: Option<(&'a [f32], f32)>,
    pub shares_scales: bool,
    pub tile: &'a mut [u8],
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Quantize { tokens, norm, shares_scales, tile } = self;
        assert_eq!(tile.len(), tokens.iter().map(|x| token_bytes(x.len())).sum(), "bytes of a tile");
        for (t, &x) in tokens.iter().enumerate() {
            let groups = groups_of(tile, t, tokens.len());
            let (factor, gain) = match norm {
                None => (1.0, None),
                Some((gain, eps)) => (1.0 / (squares(s, x) / x.len() as f32 + eps).sqrt(), Some(gain)),
            };
            match shares_scales {
                true => quantize::<S, SHARING>(s, x, factor, gain, groups),
                false => quantize::<S, 1>(s, x, factor, gain, groups),
            }
        }
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
