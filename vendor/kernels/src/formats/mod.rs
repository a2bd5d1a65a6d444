//! Weight types: how the bytes of a matrix's rows are decoded and multiplied, one file for each type.
//!
//! Kernels know nothing of a type but what the trait [`Weight`] says. Memory for the bytes, and how a file names its types, are the
//! callers' affair.
//!
//! To add a type:
//!
//! 1. Write a file beside this one, with its `mod` line below: a unit struct that implements [`Weight`]. [`Weight::BLOCK`] and
//!    [`Weight::decode`] are enough for products of many tokens and for reduced columns: both then quantise the decoded values anew.
//! 2. Add a line to the list `formats!` below. It makes the variant of [`Format`] and all dispatch, and callers find the type by its name
//!    in GGUF. The tests in `tests.rs` go over the list, and compare all products with what [`Weight::decode`] writes. Whether that is
//!    right they cannot say: compare it with ggml, or with a definition in `tests/properties/common.rs`.
//! 3. Where the type's own codes are 4 or 8 bits wide, use them: implement [`Weight::panel_row`] (packs faster), then `BITS`, `MINIMA`,
//!    `ZERO`, [`Weight::prepare`] and [`Weight::block`] (reduced columns take half the memory with 4 bits), then `GEMV`,
//!    [`Weight::gemv_acts`] and [`Weight::dot`] (single tokens need no packing). `q8_0.rs` is the simplest model with all of these;
//!    `nibbles.rs` has what types of 4 bits share. Types of other widths can have the last three alone. Types with super-blocks of 256
//!    inputs have [`super_blocks::SuperBlocks`] for the rest, and with them [`Weight::codes_of_blocks`] and [`Weight::scales_of_blocks`], as
//!    `q6_k.rs` has.

pub(crate) mod by_block;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nibbles;
mod other;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
pub(crate) mod super_blocks;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::acts::{self, Acts};
use crate::gemv::{GemvActs, Rows, Sums};
use crate::isa::Simd;
use crate::panel::{self, Codes, PanelRow};

/// Inputs of a block of reduced columns: blocks that share a scale, whatever the type's own blocks are.
pub(crate) const BLOCK: usize = 32;

/// The smallest part of a row that can be decoded by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub inputs: usize,
    pub bytes: usize,
}

/// A weight type. Slices `row` are the bytes of a whole row, as a file has them.
///
/// All functions that take an instruction set are to be marked `#[inline(always)]`, see [`Simd`].
pub(crate) trait Weight: Copy {
    /// The type's block, if it is known.
    const BLOCK: Option<Block>;

    /// Writes the row's values.
    fn decode<S: Simd>(self, s: S, row: &[u8], out: &mut [f32]);

    /// Writes the row as 8-bit codes with a scale for each 32 inputs; see [`PanelRow`]. Of super-blocks each 128 inputs have the same scale.
    ///
    /// `scratch` has room for a float of each input, rounded up to whole groups of `out`; a row has `n_in` inputs.
    #[inline(always)]
    fn panel_row<S: Simd>(self, s: S, row: &[u8], n_in: usize, scratch: &mut [f32], out: PanelRow) {
        self.decode(s, row, &mut scratch[..n_in]);
        scratch[n_in..].fill(0.0);
        panel::quantize::<S, 1>(s, scratch, out);
    }

    /// Codes of panels on instruction sets that multiply small codes faster: the type's own where they are of 3 to 6 bits.
    const SMALL_CODES: Codes = Codes::Eight;

    /// Writes the row as small codes, if it has such, with what panels have of them as scales and minima.
    #[inline(always)]
    fn small_row<S: Simd>(self, _s: S, _row: &[u8], _out: PanelRow) {
        panic!("rows of this type have no small codes")
    }

    /// Bits of a code of reduced columns. 8-bit codes have a sign; 4-bit codes have none, and [`Weight::ZERO`] is to be subtracted.
    const BITS: u32 = 8;
    /// Whether blocks of reduced columns have a minimum, which is added to each weight.
    const MINIMA: bool = false;
    /// The code of 4 or 5 bits that stands for zero.
    const ZERO: i32 = 0;

    /// Computes what [`Weight::block`] needs of the whole row, once for each row. `scratch` has a float for each input.
    #[inline(always)]
    fn prepare<S: Simd>(self, s: S, row: &[u8], scratch: &mut [f32]) {
        self.decode(s, row, scratch);
    }

    /// Block number `i`, of 32 inputs, for reduced columns: its codes, its scale and its minimum (0 without [`Weight::MINIMA`]). Codes that
    /// the row does not have as they are go into `room`. `scratch` is what [`Weight::prepare`] left.
    #[inline(always)]
    fn block<'a, S: Simd>(
        self,
        _s: S,
        _row: &'a [u8],
        scratch: &[f32],
        i: usize,
        room: &'a mut [u8; BLOCK],
    ) -> (&'a [u8; BLOCK], f32, f32) {
        let mut x = [0.0f32; BLOCK];
        let inputs = &scratch[i * BLOCK..scratch.len().min((i + 1) * BLOCK)];
        x[..inputs.len()].copy_from_slice(inputs);
        // The bits of magnitudes have the magnitudes' order, and NaN is above all.
        let largest = x.iter().fold(0, |a, x| x.abs().to_bits().max(a));
        let (scale, inverse) = acts::scales(f32::from_bits(largest));
        let mut codes = [0u8; BLOCK];
        codes.iter_mut().zip(&x).for_each(|(to, x)| *to = (x * inverse).round() as i8 as u8);
        *room = codes;
        (room, scale, 0.0)
    }

    /// Whether rows can be multiplied where they are, by the two functions that follow.
    const GEMV: bool = false;

    /// Puts activations into the order in which [`Weight::dot`] meets a row's codes.
    #[inline(always)]
    fn gemv_acts<S: Simd>(self, _s: S, _acts: Acts) -> GemvActs {
        panic!("{NO_GEMV}")
    }

    /// Products of `R` rows with `T` tokens, as sums by lanes.
    #[inline(always)]
    fn dot<S: Simd, const T: usize, const R: usize>(self, _s: S, _rows: Rows<R>, _acts: &GemvActs) -> Sums<S, T, R> {
        panic!("{NO_GEMV}")
    }

    /// The codes of a super-block, bytes without sign, by lanes of its blocks: see [`by_block`], which multiplies rows of super-blocks instead of
    /// [`Weight::dot`] where vectors have as many lanes.
    #[inline(always)]
    fn codes_of_blocks<S: Simd>(self, _s: S, _block: &[u8]) -> [S::I; by_block::VECTORS] {
        panic!("{NO_GEMV}")
    }

    /// For each lane the scale of its block, and the minimum: weights are `scale * code + minimum`.
    #[inline(always)]
    fn scales_of_blocks<S: Simd>(self, _s: S, _block: &[u8]) -> [S::F; 2] {
        panic!("{NO_GEMV}")
    }
}

const NO_GEMV: &str = "rows of this type cannot be multiplied where they are";

/// Whether a row has as many bytes as `n_in` inputs take, if the type's block is known.
pub(crate) fn is_row<W: Weight>(_: W, row: &[u8], n_in: usize) -> bool {
    W::BLOCK.is_none_or(|b| n_in.is_multiple_of(b.inputs) && row.len() == n_in / b.inputs * b.bytes)
}

/// See [`Format::shares_scales`].
pub(crate) const fn shares_scales<W: Weight>() -> bool {
    matches!(W::BLOCK, Some(Block { inputs: super_blocks::INPUTS, .. }))
}

/// What codes of reduced columns, and of rows that are multiplied where they are, have too much in a dot product: the product's result
/// is to be less by as many sums of activations.
pub(crate) const fn excess<S: Simd, W: Weight>() -> i32 {
    if W::BITS == 8 { S::OFFSET } else { W::ZERO }
}

/// Writes a row's values: for types that kernels do not know.
pub type Decode<'a> = &'a (dyn Fn(&[u8], &mut [f32]) + Sync);

/// Makes [`Format`] of a list. A line has the file, its implementor of [`Weight`], after which the variant is named, and the type's name in
/// GGUF.
macro_rules! formats {
    ($($(#[$doc:meta])* $file:ident::$weight:ident, $name:literal;)*) => {
        $(pub(crate) use $file::$weight;)*

        /// How a row's bytes are to be read.
        #[derive(Clone, Copy)]
        #[non_exhaustive]
        pub enum Format<'a> {
            $($(#[$doc])* $weight,)*
            /// Any other type, with a function that writes a row's values
            Other(Decode<'a>),
        }

        impl Format<'_> {
            /// All types that kernels decode themselves: all but [`Format::Other`].
            pub const ALL: &'static [Format<'static>] = &[$(Format::$weight),*];

            /// The type's name in GGUF, such as `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Format::$weight => $name,)*
                    Format::Other(_) => "other",
                }
            }
        }

        /// Evaluates an expression, in which a name stands for the format's implementor of [`Weight`].
        macro_rules! with_weight {
            ($format:expr, $w:ident => $result:expr) => {
                match $format {
                    $($crate::formats::Format::$weight => {
                        let $w = $crate::formats::$weight;
                        $result
                    })*
                    $crate::formats::Format::Other(decode) => {
                        let $w = $crate::formats::Other(decode);
                        $result
                    }
                }
            };
        }
    };
}

formats! {
    /// Blocks of 256 in 84 bytes: a scale and a minimum (F16), sixteen scales and minima of 4 bits, and codes of 2 bits
    q2_k::Q2K, "Q2_K";
    /// Blocks of 256 in 110 bytes: a scale (F16), sixteen scales of 6 bits, and codes of 3 bits from which 4 is subtracted
    q3_k::Q3K, "Q3_K";
    /// Blocks of 32 in 18 bytes: a scale (F16), and codes of 4 bits from which 8 is subtracted
    q4_0::Q4_0, "Q4_0";
    /// Blocks of 32 in 20 bytes: a scale and a minimum (F16), and codes of 4 bits
    q4_1::Q4_1, "Q4_1";
    /// Blocks of 256 in 144 bytes: a scale and a minimum (F16), eight scales and minima of 6 bits, and codes of 4 bits
    q4_k::Q4K, "Q4_K";
    /// Blocks of 32 in 22 bytes: a scale (F16), and codes of 5 bits from which 16 is subtracted
    q5_0::Q5_0, "Q5_0";
    /// Blocks of 32 in 24 bytes: a scale and a minimum (F16), and codes of 5 bits
    q5_1::Q5_1, "Q5_1";
    /// Blocks of 256 in 176 bytes: a scale and a minimum (F16), eight scales and minima of 6 bits, and codes of 5 bits
    q5_k::Q5K, "Q5_K";
    /// Blocks of 256 in 210 bytes: a scale (F16), sixteen scales of 8 bits, and codes of 6 bits from which 32 is subtracted
    q6_k::Q6K, "Q6_K";
    /// Blocks of 32 in 18 bytes: a scale (F16), and codes of 4 bits, which are numbers in a table
    iq4_nl::Iq4Nl, "IQ4_NL";
    /// Blocks of 256 in 136 bytes: a scale (F16), eight scales of 6 bits, and codes of 4 bits, which are numbers in a table
    iq4_xs::Iq4Xs, "IQ4_XS";
    /// Blocks of 32 in 17 bytes: a scale (a power of two), and codes of 4 bits, which are floats
    mxfp4::Mxfp4, "MXFP4";
    /// Blocks of 32 in 34 bytes: a scale (F16), and codes of 8 bits with sign
    q8_0::Q8_0, "Q8_0";
}
pub(crate) use other::Other;
#[allow(clippy::single_component_path_imports, reason = "other modules use the macro by this path")]
pub(crate) use with_weight;

impl Format<'_> {
    /// The type of this name in GGUF, such as `Q4_K`, if kernels decode it themselves.
    pub fn from_name(name: &str) -> Option<Format<'static>> {
        Format::ALL.iter().copied().find(|format| format.name() == name)
    }

    /// Whether rows can be multiplied where they are: by [`crate::Isa::gemv`].
    pub fn has_gemv(self) -> bool {
        fn of<W: Weight>(_: W) -> bool {
            W::GEMV
        }
        with_weight!(self, w => of(w))
    }

    /// Whether such rows want activations of which four groups of inputs, those of a half of a super-block, have the same scale. Panels of them have
    /// the same scale for these groups, too. Products of these groups are added as integers: it takes a fifth less time, of few tokens a third.
    pub fn shares_scales(self) -> bool {
        fn of<W: Weight>(_: W) -> bool {
            shares_scales::<W>()
        }
        with_weight!(self, w => of(w))
    }
}

impl fmt::Debug for Format<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One row of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The row as a file has it: whole blocks
    pub bytes: &'a [u8],
    /// How to read it
    pub format: Format<'a>,
}
