//! Gemv: products of a matrix with few tokens. Each row is read once, where the file has it, and multiplied with all tokens.
//!
//! The activations are arranged beforehand, once for all rows, in the order in which a weight type's codes come out of a row's bytes. How a
//! type does both is in its file in `formats/`.

use crate::RowFn;
use crate::acts::{Acts, GROUP};
use crate::formats::{Format, Weight, with_weight};
use crate::isa::{Kernel, Simd};

/// The most tokens that [`crate::Isa::gemv`] multiplies at once.
pub const MAX_GEMV_TOKENS: usize = 8;

/// Activations are arranged in pieces of so many.
pub(crate) const PIECE: usize = 16;

/// 64 bytes of what belongs to a token in a step: codes of activations, a vector or several smaller ones, or [`Numbers`].
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Codes(pub [u8; 64]);

/// Activations of up to [`MAX_GEMV_TOKENS`] tokens, arranged for rows of one format by [`crate::Isa::gemv_acts`].
///
/// They are read once for each row: the processor's nearest memory should hold them beside the rows that stream by.
#[derive(Debug)]
pub struct GemvActs {
    /// Name of the format
    format: &'static str,
    n_tokens: usize,
    /// Step by step, in each token by token; of a token the codes, and [`Numbers`] if the format's steps have lanes of one block each
    pub(crate) codes: Vec<Codes>,
    /// Token by token the scale of each group, or of each half of one, if [`GemvActs::add_groups`] or [`GemvActs::add_halves`] was called
    pub(crate) scales: Vec<f32>,
    /// Token by token the sum of the activations of each group, or of each half of one, times a factor, if one of them was called
    pub(crate) sums: Vec<f32>,
}

/// What lanes have to do with blocks, for [`Numbers`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes {
    /// A step's lanes, in fours: piece `i` of a step is for the four number `i % fours`
    pub fours: usize,
    /// Lanes that a block of 32 inputs is spread over
    pub per_block: i32,
    /// What weights' codes have too much, see [`crate::formats::excess`]; `None` of blocks with a minimum, which is added to each weight
    pub excess: Option<i32>,
}

/// Numbers for each lane of a step, as they lie behind a token's codes: first the scales of the lanes' blocks (F32), then what
/// [`Lanes::excess`] asks for. With an excess these are the numbers (I32) that the lanes' dot products begin with, their shares of the sums
/// of the blocks' codes times the excess, negative; with minima the lanes' shares of the sums of the blocks' activations (F32).
#[derive(Debug, Clone, Copy)]
struct Numbers {
    scales: [f32; 16],
    others: [u32; 16],
}

impl Numbers {
    /// Adds those of some fours.
    fn push(&self, fours: usize, to: &mut Vec<Codes>) {
        let mut units = [Codes([0; 64]); 2];
        let words =
            self.scales[..4 * fours].iter().map(|x| x.to_bits()).chain(self.others[..4 * fours].iter().copied());
        for (i, word) in words.enumerate() {
            units[i / 16].0[i % 16 * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        to.extend(&units[..(8 * fours).div_ceil(16)]);
    }
}

/// A vector of what a token has in a step, from byte `at` on.
#[inline(always)]
pub(crate) fn vector<S: Simd>(s: S, of_token: &[Codes], at: usize) -> S::I {
    s.load_i(&of_token[at / 64].0[at % 64..])
}

/// For each token three sums by lanes, whose total is the result. The first two are for dot products, in turn, as an addition to one need
/// not wait for that to the other; the third is for minima.
pub(crate) type Sums<S, const T: usize> = [[<S as Simd>::F; 3]; T];

impl GemvActs {
    /// Arranges activations in steps of `n_inputs`. Piece `i` of a step is of the inputs from `first(step, i)` on, all of one group; without
    /// a first input, or behind the last, it is zeros.
    #[inline(always)]
    pub(crate) fn arrange(
        acts: Acts,
        n_inputs: usize,
        lanes: Option<Lanes>,
        first: impl Fn(usize, usize) -> Option<usize>,
    ) -> GemvActs {
        let n_tokens = acts.n_tokens();
        assert!(
            (1..=MAX_GEMV_TOKENS).contains(&n_tokens),
            "a gemv is of 1 to {MAX_GEMV_TOKENS} tokens, not {n_tokens}"
        );
        let mut all = GemvActs { format: "", n_tokens, codes: Vec::new(), scales: Vec::new(), sums: Vec::new() };
        for step in 0..acts.k().div_ceil(n_inputs) {
            for t in 0..n_tokens {
                let token = acts.token(t);
                let mut codes = [Codes([0; 64]); 4];
                let mut numbers = Numbers { scales: [0.0; 16], others: [0; 16] };
                for i in 0..n_inputs / PIECE {
                    let Some(first) = first(step, i) else { continue };
                    let (g, at) = (first / GROUP, first % GROUP);
                    if g >= acts.n_groups() {
                        continue;
                    }
                    let piece: &[u8; PIECE] = token.codes(g)[at..].first_chunk().expect("a piece of a group");
                    codes[i * PIECE / 64].0[i * PIECE % 64..][..PIECE].copy_from_slice(piece);
                    if let Some(lanes) = lanes {
                        let four = i % lanes.fours * 4;
                        numbers.scales[four..four + 4].fill(token.scale(g));
                        numbers.others[four..four + 4].fill(match lanes.excess {
                            Some(excess) => (-excess * token.sum(g) / lanes.per_block) as u32,
                            None => (token.sum(g) as f32 * token.scale(g) / lanes.per_block as f32).to_bits(),
                        });
                    }
                }
                all.codes.extend(&codes[..n_inputs.div_ceil(64)]);
                if let Some(lanes) = lanes {
                    numbers.push(lanes.fours, &mut all.codes);
                }
            }
        }
        all
    }

    /// Adds scale and sum of each group, token by token.
    pub(crate) fn add_groups(&mut self, acts: Acts) {
        for t in 0..self.n_tokens {
            let token = acts.token(t);
            for g in 0..acts.n_groups() {
                self.scales.push(token.scale(g));
                self.sums.push(token.sum(g) as f32 * token.scale(g));
            }
        }
    }

    /// Adds scale and sum, times a factor, of each half of a group, token by token.
    pub(crate) fn add_halves(&mut self, acts: Acts, factor: i32) {
        for t in 0..self.n_tokens {
            let token = acts.token(t);
            for g in 0..acts.n_groups() {
                for half in token.codes(g).chunks_exact(GROUP / 2) {
                    let sum: i32 = half.iter().map(|&c| i32::from(c as i8)).sum();
                    self.scales.push(token.scale(g));
                    self.sums.push((factor * sum) as f32 * token.scale(g));
                }
            }
        }
    }
}

/// See [`crate::Isa::gemv_acts`].
pub(crate) struct MakeGemvActs<'a> {
    pub acts: Acts<'a>,
    pub format: Format<'a>,
}

impl Kernel for MakeGemvActs<'_> {
    type Out = GemvActs;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> GemvActs {
        let acts = with_weight!(self.format, w => s.run(ActsOf { weight: w, acts: self.acts }));
        GemvActs { format: self.format.name(), ..acts }
    }
}

struct ActsOf<'a, W> {
    weight: W,
    acts: Acts<'a>,
}

impl<W: Weight> Kernel for ActsOf<'_, W> {
    type Out = GemvActs;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> GemvActs {
        self.weight.gemv_acts(s, self.acts)
    }
}

/// See [`crate::Isa::gemv`].
pub(crate) struct Gemv<'a, 'r> {
    pub acts: &'a GemvActs,
    pub row: RowFn<'a, 'r>,
    pub n_rows: usize,
    pub done: &'a mut dyn FnMut(usize, &[f32]),
}

/// The same of `T` tokens and rows of one format.
struct GemvOf<'a, 'r, W, const T: usize> {
    weight: W,
    all: Gemv<'a, 'r>,
}

impl Kernel for Gemv<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Some(format) = (self.n_rows > 0).then(|| (self.row)(0).format) else { return };
        let all = self;
        macro_rules! run {
            ($($t:literal)*) => {
                match all.acts.n_tokens {
                    $($t => with_weight!(format, w => s.run(GemvOf::<_, $t> { weight: w, all })),)*
                    n => unreachable!("activations of {n} tokens"),
                }
            };
        }
        run!(1 2 3 4 5 6 7 8)
    }
}

impl<W: Weight, const T: usize> Kernel for GemvOf<'_, '_, W, T> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Gemv { acts, row, n_rows, done } = self.all;
        let mut next = row(0);
        for i in 0..n_rows {
            let now = next;
            if i + 1 < n_rows {
                next = row(i + 1);
                // The processor reads ahead by itself, but not beyond a page of memory.
                s.prefetch(next.bytes);
            }
            debug_assert_eq!(now.format.name(), acts.format, "rows of the format");
            let mut out = [0.0; T];
            for (out, [a, b, c]) in out.iter_mut().zip(self.weight.dot::<S, T>(s, now.bytes, acts)) {
                *out = s.reduce_sum(s.add(s.add(a, b), c));
            }
            done(i, &out);
        }
    }
}
