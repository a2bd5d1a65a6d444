//! Gemv: products of a matrix with few tokens. Each row is read once, where the file has it, and multiplied with all tokens. What a token's sum
//! is does not depend on the number of tokens, nor on that of the rows at once.
//!
//! The activations are arranged beforehand, once for all rows, in the order in which a weight type's codes come out of a row's bytes. How a
//! type does both is in its file in `formats/`.

use crate::acts::{Acts, GROUP, SHARING};
use crate::formats::{Format, Weight, by_block, super_blocks, with_weight};
use crate::isa::{Kernel, Simd};
use crate::{Isa, RowFn, panel};

/// The most tokens that [`crate::Isa::gemv`] multiplies at once.
pub const MAX_GEMV_TOKENS: usize = 8;

/// Activations are arranged in pieces of so many.
pub(crate) const PIECE: usize = 16;

/// 64 codes of a token's activations: a vector of bytes, or several smaller ones.
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
    /// Whose lanes they are arranged for
    pub(crate) isa: Isa,
    n_tokens: usize,
    /// Step by step, in each token by token
    codes: Vec<Codes>,
    /// In the same order, the scale of each four of [`Lanes`] or of each lane; or of super-blocks, one by one, [`HalfScales`]
    scales: Vec<f32>,
    /// In the order of the scales, for each four of [`Lanes`] what [`Lanes::excess`] asks for, or for each lane the sum of its group's activations; or
    /// of super-blocks, token by token, such sums of each group or of each half of one, times a factor
    sums: Vec<f32>,
    /// For products by lanes of blocks, step by step, in each token by token: of each lane the sum of the codes, as a 16-bit float, which such a sum
    /// is exactly
    block_sums: Vec<[u8; 32]>,
}

/// What all tokens have in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    pub codes: &'a [Codes],
    pub scales: &'a [f32],
    pub sums: &'a [f32],
}

/// What all tokens have in a super-block, by lanes of its blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockStep<'a, const T: usize> {
    pub codes: &'a [[Codes; by_block::VECTORS]; T],
    pub scales: &'a [[f32; 2]; T],
    pub sums: &'a [[u8; 32]; T],
}

/// Which lanes of a step belong to which blocks, for types whose steps have lanes of one block each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes {
    /// A step's lanes, in fours: piece `i` of a step is for the four number `i % fours`
    pub fours: usize,
    /// Lanes that a block of 32 inputs is spread over
    pub per_block: i32,
    /// What weights' codes have too much, see [`crate::formats::excess`]: sums are the integers that the lanes' dot products begin with
    pub excess: i32,
}

/// A vector of codes, from byte `at` on.
#[inline(always)]
pub(crate) fn vector<S: Simd>(s: S, codes: &[Codes], at: usize) -> S::I {
    s.load_i(&codes[at / 64].0[at % 64..])
}

/// Rows that are multiplied at once, all of one length.
pub(crate) struct Rows<'a, const R: usize> {
    pub whole: [&'a [u8]; R],
    /// What was not read of them yet
    rest: [&'a [u8]; R],
    /// The same of rows that will be multiplied soon; empty slices where there are none. The processor reads ahead by itself, but not far, and not
    /// beyond a page of memory.
    ahead: [&'a [u8]; R],
}

impl<'a, const R: usize> Rows<'a, R> {
    /// Bytes of a row that were not read yet.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.rest[0].len()
    }

    /// The next `n` bytes of each row. Those of the rows ahead are fetched meanwhile.
    #[inline(always)]
    pub fn next<S: Simd>(&mut self, s: S, n: usize) -> [&'a [u8]; R] {
        let mut parts = self.rest;
        for r in 0..R {
            (parts[r], self.rest[r]) = self.rest[r].split_at(n);
            if let Some((part, rest)) = self.ahead[r].split_at_checked(n) {
                s.prefetch(part);
                self.ahead[r] = rest;
            }
        }
        parts
    }

    /// The same of a block of `N` bytes.
    #[inline(always)]
    pub fn next_block<S: Simd, const N: usize>(&mut self, s: S) -> [&'a [u8; N]; R] {
        let mut blocks = [&[0; N]; R];
        for r in 0..R {
            (blocks[r], self.rest[r]) = self.rest[r].split_first_chunk().expect("a whole block");
            if let Some((part, rest)) = self.ahead[r].split_at_checked(N) {
                s.prefetch(part);
                self.ahead[r] = rest;
            }
        }
        blocks
    }
}

/// For each row and token a sum by lanes, whose total is the result.
pub(crate) type Sums<S, const T: usize, const R: usize> = [[<S as Simd>::F; T]; R];

impl GemvActs {
    /// Of nothing yet.
    fn new(n_tokens: usize) -> GemvActs {
        assert!(
            (1..=MAX_GEMV_TOKENS).contains(&n_tokens),
            "a gemv is of 1 to {MAX_GEMV_TOKENS} tokens, not {n_tokens}"
        );
        GemvActs {
            format: "",
            isa: Isa::best(),
            n_tokens,
            codes: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
            block_sums: Vec::new(),
        }
    }

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
        let mut all = GemvActs::new(n_tokens);
        for step in 0..acts.k().div_ceil(n_inputs) {
            for t in 0..n_tokens {
                let token = acts.token(t);
                let mut codes = [Codes([0; 64]); 4];
                let (mut scales, mut sums) = ([0.0; 4], [0.0; 4]);
                for i in 0..n_inputs / PIECE {
                    let Some(first) = first(step, i) else { continue };
                    let (g, at) = (first / GROUP, first % GROUP);
                    if g >= acts.n_groups() {
                        continue;
                    }
                    let group = token.group(g);
                    let piece: &[u8; PIECE] = group.codes()[at..].first_chunk().expect("a piece of a group");
                    codes[i * PIECE / 64].0[i * PIECE % 64..][..PIECE].copy_from_slice(piece);
                    if let Some(lanes) = lanes {
                        let four = i % lanes.fours;
                        scales[four] = group.scale();
                        sums[four] = (-lanes.excess * group.codes_sum() / lanes.per_block) as f32;
                    }
                }
                all.codes.extend(&codes[..n_inputs.div_ceil(64)]);
                if let Some(lanes) = lanes {
                    all.scales.extend(&scales[..lanes.fours]);
                    all.sums.extend(&sums[..lanes.fours]);
                }
            }
        }
        all
    }

    /// Where step `step` of `n_inputs` begins, and how many of its inputs the step before it has had already: the last one is of the last inputs, if
    /// they do not fill it. Of fewer inputs than a step has it is the only one.
    fn step(k: usize, n_inputs: usize, step: usize) -> (usize, usize) {
        let begin = step * n_inputs;
        let had = (begin + n_inputs).saturating_sub(k).min(begin);
        (begin - had, had)
    }

    /// Arranges activations in [steps](GemvActs::step) of `n_inputs`, four by four: those number `i` are a step's inputs from `first(i)` on, all of one
    /// group. Those that a step before has had, or that are missing, are zeros.
    pub(crate) fn by_fours(acts: Acts, n_inputs: usize, first: impl Fn(usize) -> usize) -> GemvActs {
        let mut all = GemvActs::new(acts.n_tokens());
        let firsts: Vec<usize> = (0..n_inputs / 4).map(first).collect();
        for step in 0..acts.k().div_ceil(n_inputs) {
            let (begin, had) = GemvActs::step(acts.k(), n_inputs, step);
            for t in 0..acts.n_tokens() {
                let token = acts.token(t);
                let mut codes = [Codes([0; 64]); 8];
                for (to, &first) in codes.iter_mut().flat_map(|c| c.0.as_chunks_mut::<4>().0).zip(&firsts) {
                    let (input, at) = (begin + first, (begin + first) % GROUP);
                    if first >= had && input < acts.k() {
                        to.copy_from_slice(&token.group(input / GROUP).codes()[at..at + 4]);
                    }
                }
                all.codes.extend(&codes[..n_inputs / 64]);
            }
        }
        all
    }

    /// Adds for each step, token and lane the scale and the sum of a group: one group for each lane.
    pub(crate) fn add_lanes<S: Simd>(&mut self, acts: Acts) {
        let n_inputs = S::LANES * GROUP;
        for step in 0..acts.k().div_ceil(n_inputs) {
            let (begin, had) = GemvActs::step(acts.k(), n_inputs, step);
            for t in 0..self.n_tokens {
                let token = acts.token(t);
                for first in (0..n_inputs).step_by(GROUP) {
                    let is_there = first >= had && begin + first < acts.k();
                    let group = is_there.then(|| token.group((begin + first) / GROUP));
                    self.scales.push(group.map_or(0.0, |g| g.scale()));
                    self.sums.push(group.map_or(0.0, |g| g.sum()));
                }
            }
        }
    }

    /// Arranges the activations of super-blocks in lanes of their blocks: see [`by_block`].
    #[inline(always)]
    pub(crate) fn by_block<S: Simd>(s: S, acts: Acts) -> GemvActs {
        let mut all = GemvActs::by_fours(acts, super_blocks::INPUTS, by_block::first_input);
        for first in (0..acts.n_groups()).step_by(2 * SHARING) {
            for t in 0..all.n_tokens {
                let token = acts.token(t);
                let mut sums = [0.0; 16];
                for g in 0..2 * SHARING {
                    for half in [0, 1] {
                        sums[by_block::lane(2 * g + half)] = token.group(first + g).half(half) as f32;
                    }
                }
                all.scales.extend([0, SHARING].map(|g| token.group(first + g).scale()));
                let mut bytes = [0; 32];
                for i in (0..sums.len()).step_by(S::LANES) {
                    s.store_f16(s.load_f(&sums[i..]), &mut bytes[2 * i..]);
                }
                all.block_sums.push(bytes);
            }
        }
        all
    }

    /// Adds for each step of 256 inputs the scales of the two halves, each in two lanes of every four, and token by token of each group the sum.
    pub(crate) fn add_groups<S: Simd>(&mut self, acts: Acts) {
        for first in (0..acts.n_groups()).step_by(2 * SHARING) {
            for t in 0..self.n_tokens {
                let token = acts.token(t);
                self.scales.extend((0..S::LANES).map(|lane| token.group(first + lane % 4 / 2 * SHARING).scale()));
            }
        }
        for t in 0..self.n_tokens {
            let token = acts.token(t);
            self.sums.extend((0..acts.n_groups()).map(|g| token.group(g).sum()));
        }
    }

    /// Adds the scales of super-blocks, and of each half of a group the sum, times a factor.
    pub(crate) fn add_halves(&mut self, acts: Acts, factor: i32) {
        self.add_scales(acts);
        for t in 0..self.n_tokens {
            let token = acts.token(t);
            for g in 0..acts.n_groups() {
                let group = token.group(g);
                self.sums.extend([0, 1].map(|half| (factor * group.half(half)) as f32 * group.scale()));
            }
        }
    }

    /// Adds the scales of each super-block.
    fn add_scales(&mut self, acts: Acts) {
        for g in (0..acts.n_groups()).step_by(2 * SHARING) {
            let mut scales: HalfScales = [0.0; 2 * MAX_GEMV_TOKENS];
            for (half, scales) in scales.chunks_exact_mut(MAX_GEMV_TOKENS).enumerate() {
                for (t, scale) in scales.iter_mut().enumerate().take(self.n_tokens) {
                    *scale = acts.token(t).group(g + half * SHARING).scale();
                }
            }
            self.scales.extend(scales);
        }
    }

    /// Changes the order of the sums of each super-block of 16 blocks.
    pub(crate) fn reorder(&mut self, order: impl Fn(&[f32; 16]) -> [f32; 16]) {
        self.sums.as_chunks_mut().0.iter_mut().for_each(|of_blocks| *of_blocks = order(of_blocks));
    }

    /// Steps in which a token has `n_units` units of codes, and `n` fours.
    #[inline(always)]
    pub(crate) fn steps<const T: usize>(&self, n_units: usize, n: usize) -> impl Iterator<Item = Step<'_>> {
        let numbers = self.scales.chunks_exact(n * T).zip(self.sums.chunks_exact(n * T));
        let codes = self.codes.chunks_exact(n_units * T);
        codes.zip(numbers).map(|(codes, (scales, sums))| Step { codes, scales, sums })
    }

    /// Steps of super-blocks by lanes of blocks: codes, the scales of both halves, and the sums of blocks.
    #[inline(always)]
    pub(crate) fn by_lanes<const T: usize>(&self) -> impl Iterator<Item = BlockStep<'_, T>> {
        let steps = self.codes.as_chunks().0.as_chunks().0.iter().zip(self.scales.as_chunks().0.as_chunks().0);
        steps.zip(self.block_sums.as_chunks().0).map(|((codes, scales), sums)| BlockStep { codes, scales, sums })
    }

    /// Steps of 256 inputs: codes, and as many scales for each token as [`GemvActs::add_groups`] has added for it.
    #[inline(always)]
    pub(crate) fn fours<S: Simd, const T: usize>(&self) -> impl Iterator<Item = (&[[Codes; 4]; T], &[f32])> {
        let codes = self.codes.as_chunks().0.as_chunks().0.iter();
        codes.zip(self.scales.chunks_exact(S::LANES * T))
    }

    /// What tokens have in each super-block: `n_units` units of codes each.
    #[inline(always)]
    pub(crate) fn super_blocks<const T: usize>(&self, n_units: usize) -> impl Iterator<Item = &[Codes]> {
        self.codes.chunks_exact(n_units * T)
    }

    /// The scales of all tokens in super-block `i`.
    #[inline(always)]
    pub(crate) fn half_scales(&self, i: usize) -> &HalfScales {
        self.scales[2 * MAX_GEMV_TOKENS * i..].first_chunk().expect("scales")
    }

    /// The `N` sums that token `t` of `T` has in super-block `i`.
    #[inline(always)]
    pub(crate) fn sums<const T: usize, const N: usize>(&self, t: usize, i: usize) -> &[f32; N] {
        self.sums[self.sums.len() / T * t + N * i..].first_chunk().expect("sums")
    }
}

/// Scales of a super-block: token by token of its first half, then of its second one.
pub(crate) type HalfScales = [f32; 2 * MAX_GEMV_TOKENS];

/// See [`crate::Isa::gemv_acts`].
pub(crate) struct MakeGemvActs<'a> {
    pub isa: Isa,
    pub acts: Acts<'a>,
    pub format: Format<'a>,
}

impl Kernel for MakeGemvActs<'_> {
    type Out = GemvActs;

    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> GemvActs {
        assert!(self.acts.shares_scales() || !self.format.shares_scales(), "activations that share scales");
        let acts = with_weight!(self.format, w => s.run(ActsOf { weight: w, acts: self.acts }));
        GemvActs { format: self.format.name(), isa: self.isa, ..acts }
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
        match const { by_block::is_used::<S, W>() } {
            true => GemvActs::by_block(s, self.acts),
            false => self.weight.gemv_acts(s, self.acts),
        }
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

/// How many rows are multiplied with `n_tokens` tokens at once. With two of them what is read of the activations serves both; but each is one more
/// place that memory is read from, which is what most time goes to with one or two tokens. Only instruction sets with 32 registers, which keep 16
/// sums, have room for the codes of two rows; where the codes of a row take many instructions, as fifth bits do, two rows were not faster either.
const fn rows_at_once<S: Simd, W: Weight>(n_tokens: usize) -> usize {
    let is_room = S::GEMV_SUMS >= 16 && 2 * n_tokens <= S::GEMV_SUMS;
    if n_tokens > 2 && is_room && !matches!(W::SMALL_CODES, panel::Codes::Five) { 2 } else { 1 }
}

/// How many bytes before it is read a row is to be fetched: from 2 to 32 KiB it makes little difference.
const AHEAD: usize = 8192;

impl<W: Weight, const T: usize> Kernel for GemvOf<'_, '_, W, T> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        match const { rows_at_once::<S, W>(T) } {
            1 => self.rows::<S, 1>(s),
            _ => self.rows::<S, 2>(s),
        }
    }
}

impl<W: Weight, const T: usize> GemvOf<'_, '_, W, T> {
    /// Multiplies `R` rows at once. The last ones may be fewer: then the last row is taken more than once.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(self, s: S) {
        let Gemv { acts, row, n_rows, done } = self.all;
        let ahead = AHEAD.div_ceil(R * row(0).bytes.len().max(1)) * R;
        for i in (0..n_rows).step_by(R) {
            let mut rows = Rows { whole: [&[]; R], rest: [&[]; R], ahead: [&[]; R] };
            for r in 0..R {
                let row_r = row((i + r).min(n_rows - 1));
                debug_assert_eq!(row_r.format.name(), acts.format, "rows of the format");
                (rows.whole[r], rows.rest[r]) = (row_r.bytes, row_r.bytes);
                if i + r + ahead < n_rows {
                    rows.ahead[r] = row(i + r + ahead).bytes;
                }
            }
            let sums = match const { by_block::is_used::<S, W>() } {
                true => by_block::dot::<S, W, T, R>(s, self.weight, rows, acts),
                false => self.weight.dot::<S, T, R>(s, rows, acts),
            };
            for (r, sums) in sums.into_iter().enumerate().take(n_rows - i) {
                let mut out = [0.0; T];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = s.reduce_sum(sum);
                }
                done(i + r, &out);
            }
        }
    }
}
