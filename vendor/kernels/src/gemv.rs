//! Matrix products of a few tokens: each row is read once, where the file has it, and multiplied with all tokens.

use crate::acts::{Acts, GROUP};
use crate::rows::{Format, Row, q4_k_scales};
use crate::simd::{Kernel, Simd};

/// Most tokens of such a product.
pub const FEW: usize = 8;

/// A group of a token's activations, as rows want them.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Ready {
    codes: [u8; GROUP],
    /// Sums of each four codes, scaled
    sums: [f32; GROUP / 4],
    /// The same, not scaled, times what the format's codes have too much
    start: [i32; GROUP / 4],
    scale: f32,
}

/// Activations of a few tokens, kept by each thread.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Group by group, in each token by token
    ready: Vec<Ready>,
    /// Sums of 32 codes, scaled: token by token
    sums: Vec<f32>,
}

/// See [`crate::Isa::multiply_few`].
pub(crate) struct MultiplyFew<'a, R, D> {
    pub row: R,
    pub n_rows: usize,
    pub acts: Acts<'a>,
    pub done: D,
    pub tokens: &'a mut Tokens,
}

/// A group of 64 weights: codes, and by lanes what a code is multiplied with and what is added.
struct Weights<S: Simd> {
    codes: [S::I; 4],
    d: [S::F; 4],
    m: Option<[S::F; 4]>,
}

/// Sums of products so far, by lanes: of groups of even and of odd number, as the sums of one wait for each other while those of
/// the other go on; and of what is added.
type Sums<S, const T: usize> = [[<S as Simd>::F; 3]; T];

/// Adds the products with one group of `T` tokens.
#[inline(always)]
fn add<S: Simd, const T: usize>(s: S, x: &[Ready], w: &Weights<S>, odd: usize, acc: &mut Sums<S, T>) {
    for (acc, x) in acc.iter_mut().zip(x) {
        for v in 0..16 / S::LANES {
            let start = s.load_lanes(&x.start[v * S::LANES..]);
            let dots = s.dot(start, w.codes[v], s.load_i(&x.codes[v * 4 * S::LANES..]));
            acc[odd] = s.fma(s.to_f(dots), s.mul(w.d[v], s.splat(x.scale)), acc[odd]);
            if let Some(m) = &w.m {
                acc[2] = s.fma(s.load_f(&x.sums[v * S::LANES..]), m[v], acc[2]);
            }
        }
    }
}

/// Adds the products with all groups of `T` tokens; `weights` unpacks two blocks of `B` bytes. `next` is what will be read after
/// this row: asked for in time.
#[inline(always)]
fn add_pairs<S: Simd, const T: usize, const B: usize>(
    s: S,
    x: &[Ready],
    row: &[u8],
    next: &[u8],
    acc: &mut Sums<S, T>,
    weights: impl Fn(&[u8; B], &[u8; B]) -> Weights<S>,
) {
    let pairs = row.chunks_exact(4 * B);
    let rest = pairs.remainder();
    let n = pairs.len();
    let block = |b: &[u8], i: usize| -> [u8; B] { b[i * B..].first_chunk().copied().unwrap_or([0; B]) };
    for ((b, x), next) in pairs.zip(x.chunks_exact(2 * T)).zip(next.chunks_exact(4 * B)) {
        s.prefetch(next);
        s.prefetch(&next[2 * B..]);
        add(s, &x[..T], &weights(b[..B].first_chunk().expect("B bytes"), b[B..].first_chunk().expect("B bytes")), 0, acc);
        let b = &b[2 * B..];
        add(s, &x[T..], &weights(b[..B].first_chunk().expect("B bytes"), b[B..].first_chunk().expect("B bytes")), 1, acc);
    }
    // Up to three blocks are left; what a group lacks is zero.
    for (i, x) in x[2 * n * T..].chunks_exact(T).enumerate() {
        let b = &rest[2 * B * i..];
        add(s, x, &weights(&block(b, 0), &block(&b[B.min(b.len())..], 0)), 0, acc);
    }
}

/// What the codes of a format have too much.
#[inline(always)]
fn excess<S: Simd>(format: Format) -> i32 {
    match format {
        Format::Q4_0 => 8,
        Format::Q8_0 => S::OFFSET,
        _ => 0,
    }
}

/// By lanes, two 16-bit floats at the start of two blocks.
#[inline(always)]
fn halves<S: Simd>(s: S, a: &[u8], b: &[u8]) -> [S::F; 4] {
    let mut out = [s.splat(0.0); 4];
    for (v, out) in out.iter_mut().enumerate().take(16 / S::LANES) {
        *out = s.pair_half(a, b, v);
    }
    out
}

/// Products of a row with `T` tokens.
#[inline(always)]
fn dot_row<S: Simd, const T: usize>(s: S, row: Row, next: &[u8], tokens: &Tokens) -> [f32; T] {
    let x = &tokens.ready[..];
    let mut acc = [[s.splat(0.0); 3]; T];
    match row.format {
        Format::Q4_0 => add_pairs::<S, T, 18>(s, x, row.bytes, next, &mut acc, |a, b| Weights {
            codes: s.unpack([&a[2..], &b[2..]]),
            d: halves(s, a, b),
            m: None,
        }),
        Format::Q4_1 => add_pairs::<S, T, 20>(s, x, row.bytes, next, &mut acc, |a, b| {
            let (mut d, mut m) = ([s.splat(0.0); 4], [s.splat(0.0); 4]);
            for (v, (d, m)) in d.iter_mut().zip(&mut m).enumerate().take(16 / S::LANES) {
                [*d, *m] = s.pair_halves(a, b, v);
            }
            Weights { codes: s.unpack([&a[4..], &b[4..]]), d, m: Some(m) }
        }),
        Format::Q8_0 => add_pairs::<S, T, 34>(s, x, row.bytes, next, &mut acc, |a, b| Weights {
            codes: s.unpack_bytes([&a[2..], &b[2..]]),
            d: halves(s, a, b),
            m: None,
        }),
        Format::Q4K => {
            let blocks = row.bytes.chunks_exact(144).zip(next.chunks_exact(144));
            for (i, ((block, next), x)) in blocks.zip(x.chunks_exact(4 * T)).enumerate() {
                let (d, m) = q4_k_scales(s, block);
                for (g, x) in x.chunks_exact(T).enumerate() {
                    s.prefetch(&next[36 * g..]);
                    let mut w = Weights { codes: s.unpack_halves(&block[16 + 32 * g..]), d: [s.splat(0.0); 4], m: None };
                    for (v, w) in w.d.iter_mut().enumerate().take(16 / S::LANES) {
                        *w = s.pair_of(&d, g, v);
                    }
                    add(s, x, &w, g % 2, &mut acc);
                }
                for (t, acc) in acc.iter_mut().enumerate() {
                    acc[2] = s.fma_eight(&tokens.sums[t * (tokens.sums.len() / T) + 8 * i..], &m, acc[2]);
                }
            }
        }
        Format::Other(_) => panic!("a row that cannot be multiplied where it is"),
    }
    let mut out = [0.0; T];
    for (out, [a, b, c]) in out.iter_mut().zip(acc) {
        *out = s.sum(s.add(s.add(a, b), c));
    }
    out
}

impl Tokens {
    /// Takes in the tokens, for rows of a format.
    #[inline(always)]
    fn make<S: Simd>(&mut self, s: S, acts: Acts, format: Format) {
        let n_groups = acts.n_groups();
        self.ready.clear();
        self.sums.resize(2 * n_groups * acts.n_tokens(), 0.0);
        let (ones, excess) = (s.splat_i(0x0101_0101), s.splat(-excess::<S>(format) as f32));
        for g in 0..n_groups {
            for t in 0..acts.n_tokens() {
                let token = acts.token(t);
                let mut x = Ready {
                    codes: *token.codes(g),
                    sums: [0.0; GROUP / 4],
                    start: [0; GROUP / 4],
                    scale: token.scale(g),
                };
                for v in 0..16 / S::LANES {
                    let sum = s.to_f(s.dot(s.splat_i(0), ones, s.load_i(&x.codes[v * 4 * S::LANES..])));
                    s.store_f(s.mul(sum, s.splat(x.scale)), &mut x.sums[v * S::LANES..]);
                    s.store_lanes(s.round(s.mul(sum, excess)), &mut x.start[v * S::LANES..]);
                }
                let (a, b) = x.sums.split_at(GROUP / 8);
                let at = 2 * (t * n_groups + g);
                self.sums[at] = a.iter().sum();
                self.sums[at + 1] = b.iter().sum();
                self.ready.push(x);
            }
        }
    }
}

impl<'r, R: Fn(usize) -> Row<'r>, D: FnMut(usize, &[f32])> Kernel for MultiplyFew<'_, R, D> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let MultiplyFew { row, n_rows, acts, mut done, tokens } = self;
        if n_rows == 0 {
            return;
        }
        tokens.make(s, acts, row(0).format);
        macro_rules! run {
            ($t:literal) => {
                {
                    let mut next = row(0);
                    for i in 0..n_rows {
                        let now = next;
                        next = row((i + 1).min(n_rows - 1));
                        done(i, &dot_row::<S, $t>(s, now, next.bytes, tokens));
                    }
                }
            };
        }
        match acts.n_tokens() {
            1 => run!(1),
            2 => run!(2),
            3 => run!(3),
            4 => run!(4),
            5 => run!(5),
            6 => run!(6),
            7 => run!(7),
            8 => run!(8),
            n => panic!("{n} tokens are not few"),
        }
    }
}
