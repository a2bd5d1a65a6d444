//! What types with super-blocks of 256 inputs share whose codes are bytes once they are unpacked: values, and rows of panels.

use crate::acts::{GROUP, SHARING};
use crate::gemv::{Codes, HalfScales, MAX_GEMV_TOKENS, Sums, vector};
use crate::isa::Simd;
use crate::panel::{self, PanelRow};

/// Inputs of a super-block.
pub(crate) const INPUTS: usize = 256;
/// Blocks of 16 inputs of a super-block. Where a type's blocks have 32, two of them have the same scale and minimum.
pub(crate) const N_BLOCKS: usize = 16;
/// Inputs of a half of a super-block: their activations have the same scale.
pub(crate) const HALF: usize = SHARING * GROUP;
/// Inputs of such a block.
const BLOCK: usize = INPUTS / N_BLOCKS;

/// A type with super-blocks of 16 blocks, whose weights are `scale * code + minimum`, with a scale and a minimum for each block.
pub(crate) trait SuperBlocks {
    /// Of a super-block
    const BYTES: usize;
    /// The least and the greatest code
    const RANGE: [f32; 2];

    /// Writes the codes of a super-block, bytes with sign, and gives the scales and the minima of its blocks.
    fn unpack<S: Simd>(s: S, block: &[u8], codes: &mut [u8; INPUTS]) -> [[f32; N_BLOCKS]; 2];
}

/// See [`super::Weight::decode`].
#[inline(always)]
pub(crate) fn decode<S: Simd, W: SuperBlocks>(s: S, row: &[u8], out: &mut [f32]) {
    let mut codes = [0u8; INPUTS];
    for (block, out) in row.chunks_exact(W::BYTES).zip(out.chunks_exact_mut(INPUTS)) {
        let [d, m] = W::unpack(s, block, &mut codes);
        for (i, (codes, out)) in codes.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK)).enumerate() {
            let (d, m) = (s.splat(d[i]), s.splat(m[i]));
            for (c, x) in codes.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                s.store_f(s.fma(s.load_i8(c), d, m), x);
            }
        }
    }
}

/// See [`super::Weight::panel_row`]. The greatest magnitude that any code of groups with the same scale could stand for becomes 127: to look for the
/// greatest one that their codes do stand for would take longer.
#[inline(always)]
pub(crate) fn panel_row<S: Simd, W: SuperBlocks>(s: S, row: &[u8], out: PanelRow) {
    let mut codes = [0u8; INPUTS];
    let to = out.codes.chunks_exact_mut(INPUTS).zip(out.scales.chunks_exact_mut(N_BLOCKS / 2));
    for (block, (to, scales)) in row.chunks_exact(W::BYTES).zip(to) {
        let [mut d, mut m] = W::unpack(s, block, &mut codes);
        let mut largest = [0.0; N_BLOCKS];
        for i in 0..N_BLOCKS {
            let [least, greatest] = W::RANGE.map(|code| (d[i] * code + m[i]).abs().to_bits());
            largest[i] = f32::from_bits(least.max(greatest));
        }
        panel::share(&mut largest, SHARING * GROUP / BLOCK);
        let mut all_scales = [0.0; N_BLOCKS];
        for i in (0..N_BLOCKS).step_by(S::LANES) {
            let (scale, inverse) = panel::scales_of(s, s.load_f(&largest[i..]));
            s.store_f(scale, &mut all_scales[i..]);
            for x in [&mut d, &mut m] {
                s.store_f(s.mul(s.load_f(&x[i..]), inverse), &mut x[i..]);
            }
        }
        scales.iter_mut().zip(all_scales.chunks_exact(2)).for_each(|(to, scale)| *to = scale[0]);
        for (i, (codes, to)) in codes.chunks_exact(BLOCK).zip(to.chunks_exact_mut(BLOCK)).enumerate() {
            let (d, m) = (s.splat(d[i]), s.splat(m[i]));
            for (c, to) in codes.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                s.store_bytes(s.round(s.fma(s.load_i8(c), d, m)), to);
            }
        }
    }
}

/// Two integers of 16 bits in the place of a float.
#[inline(always)]
fn pair(first: i16, second: i16) -> f32 {
    f32::from_bits(u32::from(first as u16) | u32::from(second as u16) << 16)
}

/// Writes what panels of small codes have of super-block `i` with blocks of 32: its scale `d`, the blocks' scales, and their minima. As in the other
/// types, an infinite scale or minimum makes its weights NaN.
#[inline(always)]
pub(crate) fn small_scales_of_32(d: f32, scales: [u8; 8], minima: [f32; 8], i: usize, out: &mut PanelRow) {
    for (both, to) in scales.chunks_exact(2).zip(out.scales[8 * i..][..8].chunks_exact_mut(2)) {
        to.copy_from_slice(&[pair(both[0].into(), both[1].into()), d + d * 0.0]);
    }
    out.minima[8 * i..].iter_mut().zip(minima).for_each(|(to, m)| *to = m + m * 0.0);
}

/// The same of a super-block with blocks of 16, whose scales have a sign.
#[inline(always)]
pub(crate) fn small_scales_of_16(d: f32, scales: &[u8; N_BLOCKS], i: usize, out: &mut PanelRow) {
    for (both, to) in scales.chunks_exact(2).zip(&mut out.scales[8 * i..]) {
        *to = pair((both[0] as i8).into(), (both[1] as i8).into());
    }
    out.minima[8 * i..][..8].fill(d + d * 0.0);
}

/// What rows are multiplied with of a half of a super-block: their codes, vector by vector, each with the integers that its lanes' products are
/// multiplied with: the scales of blocks.
pub(crate) struct Vectors<S: Simd, const R: usize> {
    codes: [[S::I; MAX_VECTORS]; R],
    factors: [[S::I; MAX_VECTORS]; R],
}

/// With vectors of 16 bytes those of a half.
const MAX_VECTORS: usize = HALF / 16;

impl<S: Simd, const R: usize> Vectors<S, R> {
    #[inline(always)]
    pub fn new(s: S) -> Vectors<S, R> {
        let none = [[s.splat_i(0); MAX_VECTORS]; R];
        Vectors { codes: none, factors: none }
    }

    /// Sets vector `v` of row `r`.
    #[inline(always)]
    pub fn set(&mut self, r: usize, v: usize, codes: S::I, factors: S::I) {
        (self.codes[r][v], self.factors[r][v]) = (codes, factors);
    }

    /// Adds the products of the first `n` vectors to the sums. They are multiplied with the `scales` of all tokens, which have the rows' in them: those
    /// of the first or of the second half. `x` are the tokens' codes for these vectors, token by token.
    #[inline(always)]
    pub fn add_products<const T: usize>(
        &self,
        s: S,
        n: usize,
        x: &[Codes],
        scales: &[HalfScales; R],
        half: usize,
        sums: &mut Sums<S, T, R>,
    ) {
        for t in 0..T {
            let x = &x[t * x.len() / T..];
            for r in 0..R {
                let mut sum = s.splat_i(0);
                for v in 0..n {
                    let x = vector(s, x, v * 4 * S::LANES);
                    sum = s.add_scaled_products(sum, self.codes[r][v], x, self.factors[r][v]);
                }
                let scale = s.splat(scales[r][half * MAX_GEMV_TOKENS + t]);
                sums[r][t] = s.fma(s.to_f(sum), scale, sums[r][t]);
            }
            // There are registers for the sums of all tokens, and beside them for the products of one.
            sums[R - 1][t] = s.in_order_f(sums[R - 1][t]);
        }
    }
}

/// Has the compiler leave the rows' scales in memory, where each product of several tokens reads its own. It would else keep all of them in
/// registers, and take each out by two more instructions; for one or two tokens that is no slower.
#[inline(always)]
pub(crate) fn keep_in_memory<const T: usize, const R: usize>(scales: &[HalfScales; R]) {
    if T > 2 {
        std::hint::black_box(scales);
    }
}

/// The tokens' scales times a row's.
#[inline(always)]
pub(crate) fn scaled<S: Simd>(s: S, d: f32, of_tokens: &HalfScales) -> HalfScales {
    let mut scales = [0.0; 2 * MAX_GEMV_TOKENS];
    for i in (0..scales.len()).step_by(S::LANES) {
        s.store_f(s.mul(s.splat(d), s.load_f(&of_tokens[i..])), &mut scales[i..]);
    }
    scales
}
