//! Matrix products of a few tokens: each row is read once, where the file has it, and multiplied with all tokens.

use crate::acts::{Acts, GROUP, SPAN};
use crate::rows::{Format, Row, q4_k_scales};
use crate::simd::{Kernel, Simd};

/// Most tokens of such a product.
pub const FEW: usize = 8;

/// Activations in the order in which codes come out of a row's bytes.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Codes([u8; 64]);

/// What belongs to the activations of a step. A value is of four lanes, which share what is the block's.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
struct Blocks {
    /// Scales
    scales: [f32; 4],
    /// Sums of the codes times what the format's codes have too much, to be taken off: the lanes' share
    start: [i32; 4],
    /// Sums of the codes, scaled: the lanes' share
    sums: [f32; 4],
}

/// Activations of up to [`FEW`] tokens, made ready for rows of one format; see [`crate::Isa::few`].
///
/// They are read once for each row: what they take is what the processor's nearest memory must hold beside the rows that stream by.
#[derive(Debug)]
pub struct Few {
    n: usize,
    order: Order,
    /// Step by step, in each token by token: for codes in the lower halves of a vector of bytes, then for those in the upper ones;
    /// whole bytes have the first only
    codes: Vec<Codes>,
    /// Step by step, in each token by token; none of [`Order::Chunks`]
    blocks: Vec<Blocks>,
    /// Scales of each 32 codes, and their sums (scaled): token by token; of [`Order::Chunks`] only
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// See [`crate::Isa::multiply_few`].
pub(crate) struct MultiplyFew<'a, R, D> {
    pub tokens: &'a Few,
    pub row: R,
    pub n_rows: usize,
    pub done: D,
}

/// Sums of products so far, by lanes: of steps of even and of odd number, as the sums of one wait for each other while those of the
/// other go on; and of what is added.
type Sums<S, const T: usize> = [[<S as Simd>::F; 3]; T];

/// How a format's codes lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// Blocks of 32 in 16 bytes; a step is as many blocks as a vector has fours of lanes
    Halves,
    /// 32 bytes hold two blocks; a step is a vector of bytes
    Chunks,
    /// Blocks of 32 bytes; a step is two blocks
    Bytes,
}

impl Order {
    fn of(format: Format) -> Order {
        match format {
            Format::Q4_0 | Format::Q4_1 => Order::Halves,
            Format::Q4K => Order::Chunks,
            Format::Q8_0 | Format::Other(_) => Order::Bytes,
        }
    }

    /// Activations of a step.
    fn step<S: Simd>(self) -> usize {
        if self == Order::Bytes { SPAN } else { 8 * S::LANES }
    }

    /// Number of the first activation of 16 bytes of a step, from byte `i` on: of their lower halves, or of the upper ones.
    #[inline(always)]
    fn place<S: Simd>(self, step: usize, upper: usize, i: usize) -> usize {
        let at = step * 4 * S::LANES + i;
        match self {
            Order::Halves => 2 * at + upper * 16,
            Order::Chunks => at / 32 * SPAN + upper * 32 + at % 32,
            Order::Bytes => step * SPAN + i,
        }
    }
}

/// See [`crate::Isa::few`].
pub(crate) struct MakeFew<'a> {
    pub acts: Acts<'a>,
    pub format: Format<'a>,
}

impl Kernel for MakeFew<'_> {
    type Out = Few;

    #[inline(always)]
    fn call<S: Simd>(self, _: S) -> Few {
        let MakeFew { acts, format } = self;
        let order = Order::of(format);
        let excess = match format {
            Format::Q4_0 => 8,
            Format::Q8_0 => S::OFFSET,
            _ => 0,
        };
        let (step_size, n) = (order.step::<S>(), acts.n_tokens());
        assert!((1..=FEW).contains(&n), "{n} tokens are not few");
        let mut few = Few { n, order, codes: Vec::new(), blocks: Vec::new(), scales: Vec::new(), sums: Vec::new() };
        // Bytes of weights in a step, and how many of them are a block's.
        let (bytes, block) = match order {
            Order::Halves => (4 * S::LANES, GROUP / 2),
            Order::Chunks => (4 * S::LANES, GROUP),
            Order::Bytes => (SPAN, GROUP),
        };
        for step in 0..acts.k().div_ceil(step_size) {
            for t in 0..n {
                let token = acts.token(t);
                let mut codes = [Codes([0; 64]); 2];
                let mut blocks = Blocks::default();
                for upper in 0..step_size / bytes {
                    for i in (0..bytes).step_by(16) {
                        let mut place = order.place::<S>(step, upper, i);
                        let (first, end) = (step * step_size, (step + 1) * step_size);
                        if order == Order::Halves && end > acts.k() && acts.k() >= step_size {
                            // The last step is of the last blocks: those of steps before it are left out.
                            place = place + acts.k() - end;
                            if place < first {
                                continue;
                            }
                        }
                        let (g, at) = (place / GROUP, place % GROUP);
                        if g < acts.n_groups() {
                            let piece: &[u8; 16] = token.codes(g)[at..].first_chunk().expect("16 of a group");
                            let to = upper * bytes + i;
                            codes[to / 64].0[to % 64..to % 64 + 16].copy_from_slice(piece);
                            let (four, lanes) = (i / 16, (block / 4) as i32);
                            blocks.scales[four] = token.scale(g);
                            blocks.start[four] = -excess * token.sum(g) / lanes;
                            blocks.sums[four] = token.sum(g) as f32 * token.scale(g) / lanes as f32;
                        }
                    }
                }
                few.codes.extend(&codes[..step_size.div_ceil(64)]);
                if order != Order::Chunks {
                    few.blocks.push(blocks);
                }
            }
        }
        if order == Order::Chunks {
            for t in 0..n {
                let token = acts.token(t);
                for g in 0..acts.n_groups() {
                    few.scales.push(token.scale(g));
                    few.sums.push(token.sum(g) as f32 * token.scale(g));
                }
            }
        }
        few
    }
}

/// The tokens of one step.
type Step<'a> = (&'a [Codes], &'a [Blocks]);

impl Few {
    /// The steps of `T` tokens, of `n` vectors of codes each.
    #[inline(always)]
    fn steps<const T: usize>(&self, n: usize) -> impl Iterator<Item = Step<'_>> {
        self.codes.chunks_exact(n * T).zip(self.blocks.chunks_exact(T))
    }
}

/// Adds the products with one step of blocks of `B` bytes; see [`halves`].
#[inline(always)]
fn add_halves<S: Simd, const T: usize, const B: usize>(
    s: S,
    b: &[u8],
    (x, blocks): Step,
    odd: usize,
    acc: &mut Sums<S, T>,
) {
    let [d, m] = s.spread::<B>(b);
    let c = s.load_pieces::<B>(&b[B - 16..]);
    let (low, high) = (s.low(c), s.high(c));
    let bytes = 4 * S::LANES;
    for ((acc, x), blocks) in acc.iter_mut().zip(x.chunks_exact(x.len() / T)).zip(blocks) {
        let start = if B == 18 { s.each_four_i(&blocks.start) } else { s.splat_i(0) };
        let upper = &x[bytes / 64].0[bytes % 64..];
        let dots = s.dot(start, low, s.load_i(&x[0].0));
        let dots = s.dot(dots, high, s.load_i(upper));
        acc[odd] = s.fma(s.to_f(dots), s.mul(d, s.each_four(&blocks.scales)), acc[odd]);
        if B == 20 {
            acc[2] = s.fma(s.each_four(&blocks.sums), m, acc[2]);
        }
    }
}

/// A row of blocks of 32 in `B` bytes: a scale, for 20 bytes a minimum, and 16 bytes of codes.
#[inline(always)]
fn halves<S: Simd, const T: usize, const B: usize>(s: S, tokens: &Few, row: &[u8]) -> Sums<S, T> {
    let mut acc = [[s.splat(0.0); 3]; T];
    let n = S::LANES / 4 * B;
    let rows = row.chunks_exact(n);
    let rest = rows.remainder();
    let mut steps = tokens.steps::<T>((8 * S::LANES).div_ceil(64));
    for (i, (b, x)) in rows.zip(&mut steps).enumerate() {
        add_halves::<S, T, B>(s, b, x, i % 2, &mut acc);
    }
    if let (Some(x), false) = (steps.next(), rest.is_empty()) {
        let mut b = [0u8; 4 * 20];
        if row.len() >= n {
            // The last blocks once more; see `MakeFew`.
            add_halves::<S, T, B>(s, &row[row.len() - n..], x, 0, &mut acc);
        } else {
            // Blocks that are missing are zeros.
            b[..rest.len()].copy_from_slice(rest);
            add_halves::<S, T, B>(s, &b[..n], x, 0, &mut acc);
        }
    }
    acc
}

/// A row of Q4_K.
#[inline(always)]
fn chunks<S: Simd, const T: usize>(s: S, tokens: &Few, row: &[u8]) -> Sums<S, T> {
    let mut acc = [[s.splat(0.0); 3]; T];
    let (bytes, n_blocks) = (4 * S::LANES, tokens.sums.len() / T);
    let vectors = (2 * bytes).div_ceil(64);
    let blocks = row.chunks_exact(144).zip(tokens.codes.chunks_exact(128 / bytes * vectors * T));
    for (i, (block, x)) in blocks.enumerate() {
        let (d, m) = q4_k_scales(s, block);
        let mut scales = [[0.0f32; 8]; T];
        for (t, scales) in scales.iter_mut().enumerate() {
            let at = t * n_blocks + 8 * i;
            *scales = s.mul_eight(&d, &tokens.scales[at..]);
            acc[t][2] = s.fma_eight(&tokens.sums[at..], &m, acc[t][2]);
        }
        for (step, (c, x)) in block[16..].chunks_exact(bytes).zip(x.chunks_exact(vectors * T)).enumerate() {
            let c = s.load_i(c);
            // The blocks of the first and of the last bytes.
            let (a, b) = (step * bytes / 32 * 2, (step * bytes + bytes / 2) / 32 * 2);
            for (upper, c) in [s.low(c), s.high(c)].into_iter().enumerate() {
                for ((acc, x), scales) in acc.iter_mut().zip(x.chunks_exact(vectors)).zip(&scales) {
                    let x = &x[upper * bytes / 64].0[upper * bytes % 64..];
                    let dots = s.dot(s.splat_i(0), c, s.load_i(x));
                    acc[upper] = s.fma(s.to_f(dots), s.two_of(scales, a + upper, b + upper), acc[upper]);
                }
            }
        }
    }
    acc
}

/// Adds the products with two blocks of Q8_0.
#[inline(always)]
fn add_bytes<S: Simd, const T: usize>(s: S, b: &[u8], (x, blocks): Step, odd: usize, acc: &mut Sums<S, T>) {
    let (a, b) = b.split_at(34);
    let codes = s.unpack_bytes([&a[2..], &b[2..]]);
    for (v, codes) in codes.iter().enumerate().take(16 / S::LANES) {
        let d = s.pair_half(a, b, v);
        for ((acc, x), blocks) in acc.iter_mut().zip(x).zip(blocks) {
            let fours = v * S::LANES / 4;
            let start = s.each_four_i(&blocks.start[fours..]);
            let dots = s.dot(start, *codes, s.load_i(&x.0[4 * v * S::LANES..]));
            acc[odd] = s.fma(s.to_f(dots), s.mul(d, s.each_four(&blocks.scales[fours..])), acc[odd]);
        }
    }
}

/// A row of Q8_0.
#[inline(always)]
fn bytes<S: Simd, const T: usize>(s: S, tokens: &Few, row: &[u8]) -> Sums<S, T> {
    let mut acc = [[s.splat(0.0); 3]; T];
    let rows = row.chunks_exact(68);
    let rest = rows.remainder();
    let mut steps = tokens.steps::<T>(1);
    for (i, (b, x)) in rows.zip(&mut steps).enumerate() {
        add_bytes(s, b, x, i % 2, &mut acc);
    }
    if let (Some(x), false) = (steps.next(), rest.is_empty()) {
        let mut b = [0u8; 68];
        b[..rest.len()].copy_from_slice(rest);
        add_bytes(s, &b, x, 0, &mut acc);
    }
    acc
}

/// Products of a row with `T` tokens.
#[inline(always)]
fn dot_row<S: Simd, const T: usize>(s: S, row: Row, tokens: &Few) -> [f32; T] {
    let acc = match row.format {
        Format::Q4_0 => halves::<S, T, 18>(s, tokens, row.bytes),
        Format::Q4_1 => halves::<S, T, 20>(s, tokens, row.bytes),
        Format::Q4K => chunks::<S, T>(s, tokens, row.bytes),
        Format::Q8_0 => bytes::<S, T>(s, tokens, row.bytes),
        Format::Other(_) => panic!("a row that cannot be multiplied where it is"),
    };
    let mut out = [0.0; T];
    for (out, [a, b, c]) in out.iter_mut().zip(acc) {
        *out = s.sum(s.add(s.add(a, b), c));
    }
    out
}

impl<'r, R: Fn(usize) -> Row<'r>, D: FnMut(usize, &[f32])> Kernel for MultiplyFew<'_, R, D> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let MultiplyFew { tokens, row, n_rows, mut done } = self;
        macro_rules! run {
            ($t:literal) => {
                for i in 0..n_rows {
                    debug_assert_eq!(Order::of(row(i).format), tokens.order, "a row of the format");
                    done(i, &dot_row::<S, $t>(s, row(i), tokens));
                }
            };
        }
        match tokens.n {
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
