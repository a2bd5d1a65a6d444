//! Q4_1: blocks of 32 inputs in 20 bytes.
//!
//! ```text
//! byte   0       2         4                                        20
//!        scale   minimum   code 0, 16 | code 1, 17 | ... | code 15, 31
//! ```
//!
//! Scale and minimum are 16-bit floats. A byte holds two codes of 4 bits, the first in its lower nibble. A weight is
//! `scale * code + minimum`.

use super::nibbles::{self, Nibbles};
use super::{BLOCK, Block, Weight};
use crate::acts::Acts;
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{Codes, PanelRow};

const BYTES: usize = 20;

#[derive(Clone, Copy)]
pub(crate) struct Q4_1;

impl Weight for Q4_1 {
    const BLOCK: Option<Block> = Some(Block { inputs: BLOCK, bytes: BYTES });

    #[inline(always)]
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]) {
        for (b, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
            let (low, high) = out.split_at_mut(BLOCK / 2);
            s.decode_nibbles(&b[4..], [s.f16_at(b); 2], [s.f16_at(&b[2..]); 2], low, high);
        }
    }

    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], _n_in: usize, _scratch: &mut [f32], out: PanelRow) {
        // A row of an odd number of blocks is filled up with a block of zeros.
        let none = [0u8; BYTES];
        let codes = out.codes.chunks_mut(16 * BLOCK);
        for ((blocks, codes), to) in row.chunks(16 * BYTES).zip(codes).zip(out.scales.chunks_mut(16)) {
            let (mut d, mut m) = ([0.0; 16], [0.0; 16]);
            for ((d, m), b) in d.iter_mut().zip(&mut m).zip(blocks.chunks_exact(BYTES)) {
                (*d, *m) = (s.f16_at(b), s.f16_at(&b[2..]));
            }
            let scales = nibbles::panel_scales::<S, 1>(s, &mut d, &mut m);
            to.copy_from_slice(&scales[..to.len()]);
            for (i, (pair, codes)) in blocks.chunks(2 * BYTES).zip(codes.chunks_exact_mut(2 * BLOCK)).enumerate() {
                let (a, b) = pair.split_at(BYTES);
                let b = if b.is_empty() { &none[..] } else { b };
                s.look_up([&a[4..], &b[4..]], &nibbles::panel_codes(s, &d[2 * i..], &m[2 * i..]), codes);
            }
        }
    }

    const SMALL_CODES: Codes = Codes::Four;

    #[inline(always)]
    fn small_row<S: Simd>(self, s: S, row: &[u8], out: PanelRow) {
        nibbles::small_row::<S, BYTES, false>(s, row, &nibbles::IDENTITY, |b| (s.f16_at(b), s.f16_at(&b[2..])), out);
    }

    const BITS: u32 = 4;
    const MINIMA: bool = true;

    #[inline(always)]
    fn prepare<S: Simd>(self, _s: S, _row: &[u8], _scratch: &mut [f32]) {}

    #[inline(always)]
    fn block<'a, S: Simd>(
        self,
        s: S,
        row: &'a [u8],
        _scratch: &[f32],
        i: usize,
        room: &'a mut [u8; BLOCK],
    ) -> (&'a [u8; BLOCK], f32, f32) {
        let b = &row[BYTES * i..];
        *room = nibbles::codes(&b[4..]);
        (room, s.f16_at(b), s.f16_at(&b[2..]))
    }

    const GEMV: bool = true;

    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, acts: Acts) -> GemvActs {
        nibbles::gemv_acts::<S>(acts)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, s: S, rows: Rows<R>, acts: &GemvActs) -> Sums<S, T, R> {
        nibbles::dot::<S, Q4_1, T, R>(s, rows, acts)
    }
}

impl Nibbles for Q4_1 {
    const BYTES: usize = BYTES;
    const BITS: u32 = 4;

    #[inline(always)]
    fn scales<S: Simd>(s: S, blocks: &[u8]) -> (S::F, Option<S::F>) {
        let both = s.load_words(blocks, BYTES);
        (s.half_f16::<false>(both), Some(s.half_f16::<true>(both)))
    }
}
