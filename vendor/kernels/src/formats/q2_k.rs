//! Q2_K: super-blocks of 256 inputs in 84 bytes, which are sixteen blocks of 16.
//!
//! ```text
//! byte   0                      16                            80      82        84
//!        scales and minima      codes of each 128 inputs      scale   minimum
//!        of the sixteen blocks  in 32 bytes
//! ```
//!
//! Scale and minimum are 16-bit floats; those of a block have 4 bits, the scale in a byte's lower nibble. Of 128 inputs, byte `i` holds the
//! codes of inputs `i`, `32 + i`, `64 + i` and `96 + i`, the first in its lowest bits. A weight is
//! `scale * block's scale * code - minimum * block's minimum`.

use super::by_block;
use super::super_blocks::{self, HALF, INPUTS, N_BLOCKS, SuperBlocks, Vectors};
use super::{Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, MAX_GEMV_TOKENS, PIECE, Rows, Sums};
use crate::isa::Simd;
use crate::panel::PanelRow;

const BYTES: usize = 84;
const CODES: usize = 16;
const SCALE: usize = 80;
/// Bytes of its codes' lower two bits.
const CODE_BYTES: usize = 64;

#[derive(Clone, Copy)]
pub(crate) struct Q2K;

/// Writes the codes of a super-block whose lower two bits are these bytes.
#[inline(always)]
pub(crate) fn codes(bytes: &[u8], out: &mut [u8; INPUTS]) {
    for (bytes, out) in bytes[..CODE_BYTES].chunks_exact(32).zip(out.chunks_exact_mut(128)) {
        // The compiler makes vector instructions of a loop over arrays of known lengths.
        let bytes: &[u8; 32] = bytes.try_into().expect("32 bytes");
        let out: &mut [u8; 128] = out.try_into().expect("128 codes");
        for i in 0..32 {
            out[i] = bytes[i] & 3;
            out[32 + i] = bytes[i] >> 2 & 3;
            out[64 + i] = bytes[i] >> 4 & 3;
            out[96 + i] = bytes[i] >> 6;
        }
    }
}

/// The numbers of the words of codes, and where in their bytes those of a block are.
const WORDS: [[u32; 16]; 4] = by_block::words([0, 4, 0, 4, 0, 4, 0, 4, 8, 12, 8, 12, 8, 12, 8, 12]);
const BITS: [u32; 16] = by_block::rotations([0, 0, 2, 2, 4, 4, 6, 6, 0, 0, 2, 2, 4, 4, 6, 6], 0);

/// The lower two bits of codes, of 64 bytes.
#[inline(always)]
pub(crate) fn codes_by_block<S: Simd>(s: S, bytes: &[u8]) -> [S::I; 4] {
    let mut codes = [s.splat_i(0); 4];
    for (codes, words) in codes.iter_mut().zip(&WORDS) {
        *codes = s.bits::<0, 3>(s.rotate(s.words(&bytes[..CODE_BYTES], words), &BITS));
    }
    codes
}

impl Weight for Q2K {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        super_blocks::decode::<S, Q2K>(s, row, out);
    }

    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        super_blocks::panel_row::<S, Q2K>(s, row, out);
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        gemv_acts::<S>(acts, 1)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        dot::<S, Q2K, T, R, BYTES>(s, rows, acts)
    }

    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::I; 4] {
        codes_by_block(s, &b[CODES..])
    }

    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::F; 2] {
        let (d, m) = Q2K::factors(s, b);
        let (scales, minima) = Q2K::scales(b);
        let (scales, minima) = (s.load_places(&scales, &by_block::OF_16), s.load_places(&minima, &by_block::OF_16));
        [s.mul(scales, s.splat(d)), s.mul(minima, s.splat(m))]
    }
}

impl SuperBlocks for Q2K {
    const BYTES: usize = BYTES;
    const RANGE: [f32; 2] = [0.0, 3.0];

    #[inline(always)]
    fn unpack<S: Simd>(s: S, b: &[u8], to: &mut [u8; INPUTS]) -> [[f32; N_BLOCKS]; 2] {
        codes(&b[CODES..], to);
        let (d, dmin) = Q2K::factors(s, b);
        let (scales, minima) = Q2K::scales(b);
        [scales.map(|scale| d * f32::from(scale)), minima.map(|minimum| dmin * f32::from(minimum))]
    }
}

impl Quarters for Q2K {
    #[inline(always)]
    fn factors<S: Simd>(s: S, b: &[u8]) -> (f32, f32) {
        (s.f16_at(&b[SCALE..]), -s.f16_at(&b[SCALE + 2..]))
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> ([u8; N_BLOCKS], [u8; N_BLOCKS]) {
        let both: &[u8; N_BLOCKS] = b.first_chunk().expect("a byte for each block");
        (both.map(|b| b & 15), both.map(|b| b >> 4))
    }

    #[inline(always)]
    fn codes<S: Simd>(s: S, b: &[u8], at: usize) -> [S::I; 4] {
        quarters(s, &b[CODES + at..])
    }
}

/// A type of super-blocks as of Q2_K. The lower two bits of its codes lie in 64 bytes as those of Q2_K do.
pub(crate) trait Quarters {
    /// The factors on blocks' scales and on their minima.
    fn factors<S: Simd>(s: S, b: &[u8]) -> (f32, f32);

    /// Scales and minima of the blocks, bytes with sign. The minima times their factor belong to the sums of [`gemv_acts`].
    fn scales(b: &[u8]) -> ([u8; N_BLOCKS], [u8; N_BLOCKS]);

    /// The codes whose lower bits are in a vector of bytes from byte `at` on: of the bytes' lowest two bits, then of the next.
    fn codes<S: Simd>(s: S, b: &[u8], at: usize) -> [S::I; 4];
}

/// Codes of two bits of a vector of bytes.
#[inline(always)]
pub(crate) fn quarters<S: Simd>(s: S, bytes: &[u8]) -> [S::I; 4] {
    let c = s.load_i(bytes);
    [s.bits::<0, 3>(c), s.bits::<2, 3>(c), s.bits::<4, 3>(c), s.bits::<6, 3>(c)]
}

/// Elements of the blocks of a super-block in the order in which [`dot`] meets these: four by four those of the same two bits of all bytes.
#[inline(always)]
fn in_order<T: Copy>(of_blocks: &[T; N_BLOCKS]) -> [T; N_BLOCKS] {
    std::array::from_fn(|i| of_blocks[i % 4 / 2 * 8 + i / 4 * 2 + i % 2])
}

/// Activations for [`dot`]. A step is a half of a super-block, vector by vector of its bytes: of each the activations of the bytes' lowest two bits,
/// then of the next. Sums are those of blocks, times a factor.
#[inline(always)]
pub(crate) fn gemv_acts<S: Simd>(acts: Acts, factor: i32) -> GemvActs {
    let bytes = 4 * S::LANES;
    let mut made = GemvActs::arrange(acts, HALF, None, |step, i| {
        let (v, byte) = (i * PIECE / bytes, i * PIECE % bytes);
        let byte = step * HALF / 4 + v / 4 * bytes + byte;
        Some(byte / 32 * 128 + v % 4 * 32 + byte % 32)
    });
    made.add_halves(acts, factor);
    made.reorder(in_order);
    made
}

/// Products of some rows, in super-blocks of `N` bytes.
#[inline(always)]
pub(crate) fn dot<S: Simd, W: Quarters, const T: usize, const R: usize, const N: usize>(
    s: S,
    mut rows: Rows<R>,
    acts: &GemvActs,
) -> Sums<S, T, R> {
    let mut acc = [[s.splat(0.0); T]; R];
    let bytes = 4 * S::LANES;
    for (i, x) in acts.super_blocks::<T>(INPUTS / 64).enumerate() {
        let blocks = rows.next_block::<S, N>(s);
        let (mut scales, mut of_blocks) = ([[0.0; 2 * MAX_GEMV_TOKENS]; R], [[0u8; N_BLOCKS]; R]);
        for r in 0..R {
            let (factor, m) = W::factors(s, blocks[r]);
            let (d_bytes, m_bytes) = W::scales(blocks[r]);
            scales[r] = super_blocks::scaled(s, factor, acts.half_scales(i));
            of_blocks[r] = in_order(&d_bytes);
            let (m, m_bytes) = (s.splat(m), in_order(&m_bytes));
            for first in (0..N_BLOCKS).step_by(S::LANES) {
                let m = s.mul(s.load_i8(&m_bytes[first..]), m);
                for t in 0..T {
                    let sums = acts.sums::<T, N_BLOCKS>(t, i);
                    acc[r][t] = s.fma(m, s.load_f(&sums[first..]), acc[r][t]);
                }
            }
        }
        for (half, x) in x.chunks_exact(HALF / 64 * T).enumerate() {
            let mut vectors = Vectors::new(s);
            for v in 0..HALF / 4 / bytes {
                let byte = half * HALF / 4 + v * bytes;
                for r in 0..R {
                    let codes = W::codes(s, blocks[r], byte);
                    for quarter in 0..4 {
                        let factors = s.factors_of_fours(&of_blocks[r], 4 * quarter + byte / 16);
                        vectors.set(r, 4 * v + quarter, codes[quarter], factors);
                    }
                }
            }
            vectors.add_products(s, HALF / bytes, x, &scales, half, &mut acc);
        }
    }
    acc
}
