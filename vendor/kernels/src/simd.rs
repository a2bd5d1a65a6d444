//! What the kernels ask of a processor.
//!
//! A kernel is written once, over [`Simd`]; each implementor is an instruction set. A value of an implementor is a proof
//! that the processor has the set: only [`crate::Isa`] makes them, after asking the processor.

/// Row vectors of a panel: two, so that each activation that is broadcast is used twice.
pub(crate) const VECS: usize = 2;

/// Vectors of `LANES` 32-bit lanes.
///
/// Every method is inlined into [`Simd::run`], which enables the instruction set. In a build for any x86-64 what the compiler does
/// not inline there is without it, and many times slower: hence `#[inline(always)]` on every function that takes an implementor, and
/// no vectors in closures, on which that cannot be said.
pub(crate) trait Simd: Copy + Send + Sync {
    /// 32-bit lanes of a vector.
    const LANES: usize;
    /// Tokens that are multiplied at once: as many as the registers allow.
    const TOKENS: usize;
    /// Row vectors that a product of floats keeps for each of six rows.
    const WIDE: usize;
    /// What is added to a weight's code before it is stored: 128 where the dot product takes unsigned weights.
    const OFFSET: i32;
    /// Integers.
    type I: Copy;
    /// Floats.
    type F: Copy;

    /// Runs a kernel with the instruction set enabled.
    fn run<K: Kernel>(self, kernel: K) -> K::Out;

    /// The same integer in every lane.
    fn splat_i(self, x: i32) -> Self::I;
    /// Four bytes for each lane; of `bytes` the first `4 * LANES`.
    fn load_i(self, bytes: &[u8]) -> Self::I;
    /// The first `LANES` integers.
    fn load_lanes(self, x: &[i32]) -> Self::I;
    /// To each lane the dot product of its four weights and its four signed bytes is added.
    fn dot(self, acc: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// The lanes' bits as floats.
    fn as_f(self, x: Self::I) -> Self::F;
    /// The lanes' bits as integers.
    fn as_i(self, x: Self::F) -> Self::I;
    /// Integers as floats.
    fn to_f(self, x: Self::I) -> Self::F;
    /// Floats as the nearest integers, ties to even; anything for what is no integer of 32 bits.
    fn round(self, x: Self::F) -> Self::I;
    /// Writes lanes, which are within -128 and 127, as signed bytes.
    fn store_bytes(self, x: Self::I, out: &mut [u8]);
    /// Writes the lanes, four bytes each.
    fn store_i(self, x: Self::I, out: &mut [u8]);
    /// `a + b`, byte by byte, wrapping.
    fn add_bytes(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lower four bits of each byte.
    fn low(self, x: Self::I) -> Self::I;
    /// The upper four bits of each byte.
    fn high(self, x: Self::I) -> Self::I;
    /// Codes of 64 weights in two blocks of 32, each in 16 bytes (lower halves of the bytes first), looked up in a table of its
    /// block.
    fn look_up(self, blocks: [&[u8]; 2], tables: &[[u8; 16]; 2], out: &mut [u8]);
    /// The same for 32 bytes: the lower halves are the first block's, the upper ones the second's.
    fn look_up_halves(self, codes: &[u8], tables: &[[u8; 16]; 2], out: &mut [u8]);
    /// Codes of 64 weights, as [`Simd::dot`] takes them, in the first `16 / LANES` vectors: of two blocks of 32 signed bytes, plus
    /// `OFFSET`.
    fn unpack_bytes(self, blocks: [&[u8]; 2]) -> [Self::I; 4];
    /// For vector `v` of 64 codes: in lanes of the first 32 codes a 16-bit float at the start of `a`, in the others of `b`.
    fn pair_half(self, a: &[u8], b: &[u8], v: usize) -> Self::F;
    /// Of blocks of `B` bytes, for each four lanes one: the 16-bit floats that they start with, and, where blocks are of 20 bytes, the
    /// second ones.
    #[inline(always)]
    fn spread<const B: usize>(self, blocks: &[u8]) -> [Self::F; 2] {
        let mut floats = [[0.0f32; 16]; 2];
        for (i, b) in blocks.chunks_exact(B).enumerate().take(Self::LANES / 4) {
            for (which, floats) in floats.iter_mut().enumerate().take(if B == 20 { 2 } else { 1 }) {
                floats[4 * i..4 * i + 4].fill(self.half(u16::from_le_bytes([b[2 * which], b[2 * which + 1]])));
            }
        }
        [self.load_f(&floats[0]), self.load_f(&floats[1])]
    }
    /// For each four lanes one float: the first `LANES / 4`.
    #[inline(always)]
    fn each_four(self, x: &[f32]) -> Self::F {
        let mut lanes = [0.0f32; 16];
        for (lanes, x) in lanes.chunks_exact_mut(4).zip(x) {
            lanes.fill(*x);
        }
        self.load_f(&lanes)
    }
    /// The same of integers.
    #[inline(always)]
    fn each_four_i(self, x: &[i32]) -> Self::I {
        let mut lanes = [0i32; 16];
        for (lanes, x) in lanes.chunks_exact_mut(4).zip(x) {
            lanes.fill(*x);
        }
        self.load_lanes(&lanes)
    }
    /// For each four lanes 16 bytes, `B` bytes from one to the next.
    #[inline(always)]
    fn load_pieces<const B: usize>(self, bytes: &[u8]) -> Self::I {
        let mut all = [0u8; 64];
        for i in 0..Self::LANES / 4 {
            all[16 * i..16 * i + 16].copy_from_slice(&bytes[B * i..B * i + 16]);
        }
        self.load_i(&all)
    }
    /// Float `a` in the first half of 16 lanes, float `b` in the second; of fewer lanes `a` in all.
    #[inline(always)]
    fn two_of(self, x: &[f32; 8], a: usize, b: usize) -> Self::F {
        let mut lanes = [x[a]; 16];
        if Self::LANES == 16 {
            lanes[8..].fill(x[b]);
        }
        self.load_f(&lanes)
    }
    /// Of `LANES` vectors as a square of lanes, its columns.
    fn transpose(self, rows: &mut [Self::I]);

    /// Writes `LANES` 16-bit floats, little-endian, the nearest ones.
    fn store_half(self, x: Self::F, out: &mut [u8]);
    /// `LANES` signed bytes as floats.
    fn bytes(self, x: &[u8]) -> Self::F;
    /// Eight bytes, without sign, times a factor.
    fn eight(self, bytes: [u8; 8], factor: f32) -> [f32; 8];
    /// Writes `d * code + m` for the lower and for the upper four bits of 16 bytes, with a scale and a minimum for each.
    fn four_bits(self, codes: &[u8], d: [f32; 2], m: [f32; 2], low: &mut [f32], high: &mut [f32]);
    /// A 16-bit float by its bits.
    fn half(self, bits: u16) -> f32;
    /// `LANES` 16-bit floats.
    fn load_half(self, x: &[u8]) -> Self::F;
    /// The first `LANES` floats.
    fn load_f(self, x: &[f32]) -> Self::F;
    /// Writes the first `LANES` floats.
    fn store_f(self, x: Self::F, out: &mut [f32]);
    /// The same float in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Products of the first eight floats.
    #[inline(always)]
    fn mul_eight(self, a: &[f32; 8], b: &[f32]) -> [f32; 8] {
        let mut out = [0.0; 8];
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a * b;
        }
        out
    }
    /// Adds to some lanes the products of the first eight floats.
    fn fma_eight(self, a: &[f32], b: &[f32; 8], c: Self::F) -> Self::F;
    /// The larger; `b` where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of `a`, which is not negative, and the magnitude of `x`; once it is NaN it stays so.
    fn largest(self, a: Self::F, x: Self::F) -> Self::F;
    /// `2^n` for whole numbers `n` within -126 and 127.
    fn exp2_i(self, n: Self::I) -> Self::F;
    /// Largest of the lanes, NaN aside.
    fn max_of(self, x: Self::F) -> f32;
    /// Writes the codes whose bit in `mask` is set, one after the other, and anything behind them: 32 bytes in all.
    #[inline(always)]
    fn compress_codes(self, codes: &[u8; 32], mask: u32, out: &mut [u8]) {
        let mut n = 0;
        for (i, c) in codes.iter().enumerate() {
            out[n] = *c;
            n += (mask >> i & 1) as usize;
        }
    }
    /// Writes the lanes whose bit in `mask` is set, one after the other, and anything behind them: `LANES` floats in all.
    fn compress(self, x: Self::F, mask: u32, out: &mut [f32]);
    /// Sum of the lanes.
    fn sum(self, x: Self::F) -> f32;
    /// Largest of the lanes, none of which is negative; NaN if one is.
    fn max_lane(self, x: Self::F) -> f32;
}

/// A computation that is written over instruction sets.
pub(crate) trait Kernel {
    /// Its result.
    type Out;
    /// Computes; to be marked `#[inline(always)]`.
    fn call<S: Simd>(self, s: S) -> Self::Out;
}

#[cfg(test)]
mod tests;
