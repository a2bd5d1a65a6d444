//! IQ4_XS: super-blocks of 256 inputs in 136 bytes, which are eight blocks of 32.
//!
//! ```text
//! byte   0       2                    4                    8                                        136
//!        scale   upper 2 bits of      lower 4 bits of      codes of each block in 16 bytes:
//!                the eight scales     the eight scales     code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! Codes are those of [IQ4_NL](super::iq4_nl). The scale is a 16-bit float, those of blocks have 6 bits, the first in the lowest. A weight is
//! `scale * (block's scale - 32) * value`.

use super::by_block;
use super::iq4_nl::VALUES;
use super::{BLOCK, Block, Weight, nibbles};
use crate::acts::{Acts, SHARING};
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{self, PanelRow};

const INPUTS: usize = 256;
const BYTES: usize = 136;
const CODES: usize = 8;
/// What makes values, bytes with sign, bytes without.
const EXCESS: i32 = 128;

#[derive(Clone, Copy)]
pub(crate) struct Iq4Xs;

/// The scales of the eight blocks, with 32 too much.
#[inline(always)]
fn integers(b: &[u8]) -> [u8; 8] {
    let mut lower = u64::from(u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
    let mut upper = u64::from(u16::from_le_bytes([b[2], b[3]]));
    // Bits move apart by halves, until each scale's are in a byte of their own.
    for (shift, mask) in [(16, 0x0000_ffff_0000_ffff), (8, 0x00ff_00ff_00ff_00ff), (4, 0x0f0f_0f0f_0f0f_0f0f)] {
        lower = (lower | lower << shift) & mask;
    }
    for (shift, mask) in [(24, 0x0000_00ff_0000_00ff), (12, 0x000f_000f_000f_000f), (6, 0x0303_0303_0303_0303)] {
        upper = (upper | upper << shift) & mask;
    }
    (lower | upper << 4).to_le_bytes()
}

/// The factors on the values of the eight blocks.
#[inline(always)]
fn scales<S: Simd>(s: S, b: &[u8]) -> [f32; 8] {
    let d = s.f16_at(b);
    // The products are exact, as 16-bit floats have few bits.
    s.scale_bytes(integers(b), d).map(|scale| scale - 32.0 * d)
}

/// The numbers of the words of codes, and where in their bytes those of a block are: two blocks of 16 are one of 32.
const WORDS: [[u32; 16]; 4] = by_block::words([0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28]);
const NIBBLES: [u32; 16] = by_block::rotations([0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4], 0);

/// Writes the values that the codes stand for, bytes with sign.
#[inline(always)]
fn values<S: Simd>(s: S, b: &[u8], out: &mut [u8]) {
    for (pair, out) in b[CODES..].chunks_exact(BLOCK).zip(out.chunks_exact_mut(2 * BLOCK)) {
        let (first, second) = pair.split_at(BLOCK / 2);
        s.look_up([first, second], &[VALUES; 2], out);
    }
}

impl Weight for Iq4Xs {
    const BLOCK: Option<Block> = Some(Block { inputs: INPUTS, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        let mut bytes = [0u8; INPUTS];
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(INPUTS)) {
            values(s, b, &mut bytes);
            let blocks = bytes.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK));
            for ((values, out), d) in blocks.zip(scales(s, b)) {
                let d = s.splat(d);
                for (v, x) in values.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store_f(s.mul(s.load_i8(v), d), x);
                }
            }
        }
    }

    /// Four blocks have the same scale, so their values become others: the greatest magnitude that any of them could be becomes 127.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        let to = out.codes.chunks_exact_mut(INPUTS).zip(out.scales.chunks_exact_mut(8));
        for (b, (codes, to)) in row.chunks_exact(BYTES).zip(to) {
            let (mut d, mut largest, mut all) = ([0.0; 16], [0.0; 16], [0.0; 16]);
            d[..8].copy_from_slice(&scales(s, b));
            largest.iter_mut().zip(d).for_each(|(largest, d)| *largest = d.abs() * 127.0);
            panel::share(&mut largest, SHARING);
            for i in (0..16).step_by(S::LANES) {
                let (scale, inverse) = panel::scales_of(s, s.load_f(&largest[i..]));
                s.store_f(scale, &mut all[i..]);
                s.store_f(s.mul(s.load_f(&d[i..]), inverse), &mut d[i..]);
            }
            to.copy_from_slice(&all[..8]);
            for (i, codes) in codes.chunks_exact_mut(2 * BLOCK).enumerate() {
                let mut tables = [[0u8; 16]; 2];
                for (table, d) in tables.iter_mut().zip(&d[2 * i..]) {
                    for j in (0..16).step_by(S::LANES) {
                        s.store_bytes(s.round(s.mul(s.load_i8(&VALUES[j..]), s.splat(*d))), &mut table[j..]);
                    }
                }
                let (first, second) = b[CODES + BLOCK * i..][..BLOCK].split_at(BLOCK / 2);
                s.look_up([first, second], &tables, codes);
            }
        }
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, mut rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        let mut acc = [[s.splat(0.0); T]; R];
        let table = const { nibbles::with_offset(VALUES, S::OFFSET) };
        let mut steps = nibbles::steps::<S, T>(acts);
        while rows.len() > 0 {
            let blocks = rows.next_block::<S, BYTES>(s);
            let mut d = [[0.0; 8]; R];
            for r in 0..R {
                d[r] = scales(s, blocks[r]);
            }
            for (step, x) in (0..8 / S::LANES).zip(&mut steps) {
                let mut values = [[s.splat_i(0); nibbles::VECTORS]; R];
                let mut factors = [(s.splat(0.0), None); R];
                for r in 0..R {
                    let first = step * S::LANES;
                    values[r] = nibbles::step_values(s, &table, &blocks[r][CODES + first * BLOCK / 2..], BLOCK / 2);
                    let scale = s.load_f(&d[r][first..]);
                    factors[r] = (scale, nibbles::offset(s, scale));
                }
                nibbles::add_products::<S, T, R>(s, &values, 8, &factors, x, &mut acc);
            }
        }
        acc
    }

    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::I; 4] {
        let table = const { nibbles::with_offset(VALUES, EXCESS) };
        let mut values = [s.splat_i(0); 4];
        for (values, words) in values.iter_mut().zip(&WORDS) {
            let codes = s.low_nibbles(s.rotate(s.words(&b[CODES..], words), &NIBBLES));
            *values = s.look_up_bytes(&table, codes);
        }
        values
    }

    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, s: S, b: &[u8]) -> [S::F; 2] {
        let scales = s.sub(s.load_places(&integers(b), &by_block::OF_32), s.splat(32.0));
        let scales = s.mul(scales, s.splat(s.f16_at(b)));
        [scales, s.mul(scales, s.splat(-EXCESS as f32))]
    }
}
