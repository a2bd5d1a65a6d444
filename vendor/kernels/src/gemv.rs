//! Gemv: products of a matrix with few tokens. Each row is read once, where the file has it, and multiplied with all tokens.
//!
//! The activations are arranged beforehand, once for all rows, in the order in which a weight type's codes come out of a row's bytes. How a
//! type does both is in its file in `formats/`.

use crate::RowFn;
use crate::acts::{Acts, GROUP};
use crate::formats::{Format, Row, Weight, with_weight};
use crate::isa::{Kernel, Simd};

/// The most tokens that [`crate::Isa::gemv`] multiplies at once.
pub const MAX_GEMV_TOKENS: usize = 8;

/// Activations are arranged in pieces of so many.
pub(crate) const PIECE: usize = 16;

/// Codes of activations: a vector of bytes, or several smaller vectors.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Codes(pub [u8; 64]);

/// What belongs to the codes of a token in a step. Each element is for four lanes of a vector.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
pub(crate) struct Shared {
    /// Scale of the lanes' block
    pub scales: [f32; 4],
    /// What a lane's dot product begins with: its share of the sum of the block's codes, times what weights' codes have too much,
    /// negative
    pub start: [i32; 4],
    /// A lane's share of the sum of the block's activations
    pub sums: [f32; 4],
}

/// Activations of up to [`MAX_GEMV_TOKENS`] tokens, arranged for rows of one format by [`crate::Isa::gemv_acts`].
///
/// They are read once for each row: the processor's nearest memory should hold them beside the rows that stream by.
#[derive(Debug)]
pub struct GemvActs {
    /// Name of the format
    format: &'static str,
    n_tokens: usize,
    /// Step by step, in each token by token
    pub(crate) codes: Vec<Codes>,
    /// Step by step, in each token by token, if the format's steps have lanes of one block each
    shared: Vec<Shared>,
    /// Token by token the scale of each group, or of each half of one, if [`GemvActs::add_groups`] or [`GemvActs::add_halves`] was called
    pub(crate) scales: Vec<f32>,
    /// Token by token the sum of the activations of each group, or of each half of one, times a factor, if one of them was called
    pub(crate) sums: Vec<f32>,
}

/// What lanes have to do with blocks, for [`Shared`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes {
    /// A step's lanes, in fours: piece `i` of a step is for the four number `i % fours`
    pub fours: usize,
    /// Lanes that a block of 32 inputs is spread over
    pub per_block: i32,
    /// See [`crate::formats::excess`]
    pub excess: i32,
}

/// A step: codes, token by token in as many vectors as a token has, and what belongs to them, token by token.
pub(crate) type Step<'a> = (&'a [Codes], &'a [Shared]);

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
        let mut all = GemvActs {
            format: "",
            n_tokens,
            codes: Vec::new(),
            shared: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
        };
        for step in 0..acts.k().div_ceil(n_inputs) {
            for t in 0..n_tokens {
                let token = acts.token(t);
                let mut codes = [Codes([0; 64]); 2];
                let mut shared = Shared::default();
                for i in 0..n_inputs / PIECE {
                    let Some(first) = first(step, i) else { continue };
                    let (g, at) = (first / GROUP, first % GROUP);
                    if g >= acts.n_groups() {
                        continue;
                    }
                    let piece: &[u8; PIECE] = token.codes(g)[at..].first_chunk().expect("a piece of a group");
                    codes[i * PIECE / 64].0[i * PIECE % 64..][..PIECE].copy_from_slice(piece);
                    if let Some(lanes) = lanes {
                        let four = i % lanes.fours;
                        shared.scales[four] = token.scale(g);
                        shared.start[four] = -lanes.excess * token.sum(g) / lanes.per_block;
                        shared.sums[four] = token.sum(g) as f32 * token.scale(g) / lanes.per_block as f32;
                    }
                }
                all.codes.extend(&codes[..n_inputs.div_ceil(64)]);
                if lanes.is_some() {
                    all.shared.push(shared);
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

    /// The steps of `T` tokens, of `n` vectors of codes each.
    #[inline(always)]
    pub(crate) fn steps<const T: usize>(&self, n: usize) -> impl Iterator<Item = Step<'_>> {
        self.codes.chunks_exact(n * T).zip(self.shared.chunks_exact(T))
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
        let acts = with_weight!(self.format, w => w.gemv_acts(s, self.acts));
        GemvActs { format: self.format.name(), ..acts }
    }
}

/// See [`crate::Isa::gemv`].
pub(crate) struct Gemv<'a, 'r> {
    pub acts: &'a GemvActs,
    pub row: RowFn<'a, 'r>,
    pub n_rows: usize,
    pub done: &'a mut dyn FnMut(usize, &[f32]),
}

/// Products of a row with `T` tokens.
#[inline(always)]
fn dot_row<S: Simd, const T: usize>(s: S, row: Row, acts: &GemvActs) -> [f32; T] {
    let sums = with_weight!(row.format, w => w.dot::<S, T>(s, row.bytes, acts));
    let mut out = [0.0; T];
    for (out, [a, b, c]) in out.iter_mut().zip(sums) {
        *out = s.reduce_sum(s.add(s.add(a, b), c));
    }
    out
}

impl Kernel for Gemv<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Gemv { acts, row, n_rows, done } = self;
        let (mut i, mut next) = (0, (n_rows > 0).then(|| row(0)));
        // No closure: it would be without the instructions, see `Simd`.
        macro_rules! run {
            ($t:literal) => {
                while let Some(now) = next {
                    next = (i + 1 < n_rows).then(|| row(i + 1));
                    if let Some(next) = next {
                        // The processor reads ahead by itself, but not beyond a page of memory.
                        s.prefetch(next.bytes);
                    }
                    debug_assert_eq!(now.format.name(), acts.format, "rows of the format");
                    done(i, &dot_row::<S, $t>(s, now, acts));
                    i += 1;
                }
            };
        }
        match acts.n_tokens {
            1 => run!(1),
            2 => run!(2),
            3 => run!(3),
            4 => run!(4),
            5 => run!(5),
            6 => run!(6),
            7 => run!(7),
            _ => run!(8),
        }
    }
}
