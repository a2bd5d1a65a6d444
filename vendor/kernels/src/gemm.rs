//! Gemm: products of a matrix with many tokens, some panels of its rows at a time.
//!
//! A tile of tokens is multiplied with a panel's rows at once: their sums fit into registers. Panels are read from the processor's second nearest
//! memory once for each tile.

use crate::acts::{Acts, GROUP, GROUP_BYTES, Group, SHARING};
use crate::formats::Format;
use crate::isa::{Kernel, Simd, unroll};
use crate::math::Activation;
use crate::panel::{Codes, MAX_ROWS, VECS, group_bytes, panel_rows};

/// Where a gemm writes its results.
pub trait Out {
    /// The floats of token `t`, one for each row that is multiplied; there may be more of them.
    fn token(&mut self, t: usize) -> &mut [f32];
}

/// Rows in panels, as [`crate::Isa::pack`] wrote them.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Panels, one after the other
    pub bytes: &'a [u8],
    /// The rows' format
    pub format: Format<'a>,
    /// Whether of the rows' columns only some were kept
    pub is_kept: bool,
}

/// What `T` tokens have of a group, see [`crate::acts`].
type Groups<const T: usize> = [[u8; GROUP_BYTES]; T];

/// Writes a tile of tokens from anywhere.
#[inline(always)]
fn gather<const T: usize>(acts: Acts, tokens: &[usize; T], tile: &mut Vec<u8>) {
    tile.clear();
    let tokens = tokens.map(|t| acts.token(t));
    for g in 0..acts.n_groups() {
        for token in &tokens {
            tile.extend_from_slice(token.group(g).0);
        }
    }
}

/// Scales (`WHICH` is 0) or minima (1) of a group for the rows of a panel's vector `v`, or what is in their place.
#[inline(always)]
fn numbers<S: Simd, const WHICH: usize>(s: S, group: &[u8], v: usize) -> S::I {
    s.load_i(&group[panel_rows::<S>() * (GROUP + 4 * WHICH) + v * S::LANES * 4..])
}

/// Writes the products of `T` tokens with the rows of a panel, where each group has scales of its own and codes have `BITS` bits.
#[inline(always)]
fn tile<S: Simd, const T: usize, const BITS: u32>(
    s: S,
    panel: &[u8],
    tokens: &[Groups<T>],
    products: &mut [[f32; MAX_ROWS]; T],
) {
    let bytes = S::LANES * 4;
    let mut out = [[s.splat(0.0); VECS]; T];
    for (group, tokens) in panel.chunks_exact(group_bytes::<S>()).zip(tokens) {
        let weights = &group[..panel_rows::<S>() * GROUP];
        let tokens: [Group; T] = std::array::from_fn(|t| Group(&tokens[t]));
        let mut acc = [[s.splat_i(0); VECS]; T];
        if BITS == 8 && S::OFFSET != 0 {
            // Weights are stored with an offset, of 128. What it adds to the product is subtracted beforehand.
            for t in 0..T {
                acc[t] = [s.splat_i(tokens[t].start()); VECS];
            }
        }
        let mut wide = [[s.splat_i(0); VECS]; T];
        unroll!(i in [0, 1, 2, 3, 4, 5, 6, 7] {
            let mut w = [s.splat_i(0); VECS];
            for v in 0..VECS {
                w[v] = s.load_i(&weights[(v * GROUP / 4 + i) * bytes..]);
            }
            for t in 0..T {
                let x = s.splat_i(tokens[t].four(i));
                for v in 0..VECS {
                    acc[t][v] = s.in_order(match BITS {
                        8 => s.dot(acc[t][v], w[v], x),
                        _ => s.add_products(acc[t][v], w[v], x),
                    });
                }
            }
            // A small sum has room for four products of codes of 5 bits.
            if BITS == 5 && i == 3 {
                for t in 0..T {
                    for v in 0..VECS {
                        (wide[t][v], acc[t][v]) = (s.whole(acc[t][v]), s.splat_i(0));
                    }
                }
            }
        });
        let (mut scales, mut minima) = ([s.splat(0.0); VECS], [s.splat(0.0); VECS]);
        for v in 0..VECS {
            scales[v] = s.as_f(numbers::<S, 0>(s, group, v));
            if BITS != 8 {
                minima[v] = s.as_f(numbers::<S, 1>(s, group, v));
            }
        }
        for t in 0..T {
            let (scale, sum) = (s.splat(tokens[t].scale()), s.splat(tokens[t].sum()));
            for v in 0..VECS {
                let dots = match BITS {
                    8 => acc[t][v],
                    5 => s.add_i(wide[t][v], s.whole(acc[t][v])),
                    _ => s.whole(acc[t][v]),
                };
                out[t][v] = s.fma(s.to_f(dots), s.mul(scales[v], scale), out[t][v]);
                if BITS != 8 {
                    out[t][v] = s.fma(minima[v], sum, out[t][v]);
                }
            }
        }
    }
    for (out, products) in out.iter().zip(products) {
        for (v, out) in out.iter().enumerate() {
            s.store_f(*out, &mut products[v * S::LANES..]);
        }
    }
}

/// Writes the products of `T` tokens with the rows of a panel, where four groups have the same scales.
#[inline(always)]
fn tile_of_shared<S: Simd, const T: usize>(
    s: S,
    panel: &[u8],
    tokens: &[Groups<T>],
    products: &mut [[f32; MAX_ROWS]; T],
) {
    let mut out = [[s.splat(0.0); VECS]; T];
    let panels = panel.chunks_exact(SHARING * group_bytes::<S>());
    let (fours, rest) = tokens.as_chunks::<SHARING>();
    let last = panels.remainder();
    for (groups, tokens) in panels.zip(fours) {
        add_shared(s, groups, tokens, &mut out);
    }
    // Of kept columns there may be two groups more.
    if !rest.is_empty() {
        add_shared(s, last, rest, &mut out);
    }
    for (out, products) in out.iter().zip(products) {
        for (v, out) in out.iter().enumerate() {
            s.store_f(*out, &mut products[v * S::LANES..]);
        }
    }
}

/// Adds the products of groups that have the same scales.
#[inline(always)]
fn add_shared<S: Simd, const T: usize>(s: S, groups: &[u8], tokens: &[Groups<T>], out: &mut [[S::F; VECS]; T]) {
    let bytes = S::LANES * 4;
    let mut acc = [[s.splat_i(0); VECS]; T];
    for (group, tokens) in groups.chunks_exact(group_bytes::<S>()).zip(tokens) {
        let weights = &group[..panel_rows::<S>() * GROUP];
        unroll!(i in [0, 1, 2, 3, 4, 5, 6, 7] {
            let mut w = [s.splat_i(0); VECS];
            for v in 0..VECS {
                w[v] = s.load_i(&weights[(v * GROUP / 4 + i) * bytes..]);
            }
            for t in 0..T {
                let x = s.splat_i(Group(&tokens[t]).four(i));
                for v in 0..VECS {
                    acc[t][v] = s.in_order(s.dot(acc[t][v], w[v], x));
                }
            }
        });
    }
    for t in 0..T {
        // Weights are stored with an offset, of 128: what it adds to the products is subtracted.
        let mut offset = 0;
        if S::OFFSET != 0 {
            for tokens in tokens {
                offset += Group(&tokens[t]).start();
            }
        }
        let scale = s.splat(Group(&tokens[0][t]).scale());
        for v in 0..VECS {
            let dots = s.add_i(acc[t][v], s.splat_i(offset));
            let scales = s.as_f(numbers::<S, 0>(s, groups, v));
            out[t][v] = s.fma(s.to_f(dots), s.mul(scales, scale), out[t][v]);
        }
    }
}

/// Writes the products of `T` tokens with the rows of a panel, where codes are those of super-blocks, of `BITS` bits: of 4 or 5 bits in blocks of 32, of
/// 3 or 6 bits in blocks of 16.
#[inline(always)]
fn tile_of_super_blocks<S: Simd, const T: usize, const BITS: u32>(
    s: S,
    panel: &[u8],
    tokens: &[Groups<T>],
    products: &mut [[f32; MAX_ROWS]; T],
) {
    let bytes = S::LANES * 4;
    let has_halves = const { BITS == 3 || BITS == 6 };
    let mut out = [[s.splat(0.0); VECS]; T];
    for (groups, tokens) in panel.chunks_exact(SHARING * group_bytes::<S>()).zip(tokens.as_chunks::<SHARING>().0) {
        let mut acc = [[s.splat_i(0); VECS]; T];
        let spans = groups.chunks_exact(2 * group_bytes::<S>()).zip(tokens.as_chunks::<2>().0);
        for (span, tokens) in spans {
            for (g, (group, tokens)) in span.chunks_exact(group_bytes::<S>()).zip(tokens).enumerate() {
                let factors = if has_halves { group } else { span };
                let mut small = [[s.splat_i(0); VECS]; T];
                unroll!(i in [0, 1, 2, 3, 4, 5, 6, 7] {
                    let mut w = [s.splat_i(0); VECS];
                    for v in 0..VECS {
                        w[v] = s.load_i(&group[(v * GROUP / 4 + i) * bytes..]);
                    }
                    for t in 0..T {
                        let x = s.splat_i(Group(&tokens[t]).four(i));
                        for v in 0..VECS {
                            small[t][v] = s.in_order(s.add_products(small[t][v], w[v], x));
                        }
                    }
                    // A small sum has room for eight products of codes of 4 bits, four of 5 bits, two of 6 bits. It ends with its block, too.
                    let n = const { [0, 0, 0, 4, 8, 4, 2][BITS as usize] };
                    if (i + 1).is_multiple_of(n) {
                        let is_second = if has_halves { i >= GROUP / 8 } else { g == 1 };
                        for v in 0..VECS {
                            let factors = numbers::<S, 0>(s, factors, v);
                            for t in 0..T {
                                acc[t][v] = match is_second {
                                    true => s.add_scaled::<true>(acc[t][v], small[t][v], factors),
                                    false => s.add_scaled::<false>(acc[t][v], small[t][v], factors),
                                };
                                small[t][v] = s.splat_i(0);
                            }
                        }
                    }
                });
            }
        }
        for t in 0..T {
            let scale = s.splat(Group(&tokens[0][t]).scale());
            for v in 0..VECS {
                let mut added = s.splat_i(0);
                for (group, tokens) in groups.chunks_exact(group_bytes::<S>()).zip(tokens) {
                    if has_halves {
                        added = s.add_pairs(added, numbers::<S, 0>(s, group, v), s.splat_i(Group(&tokens[t]).halves()));
                    } else {
                        let minima = s.as_f(numbers::<S, 1>(s, group, v));
                        out[t][v] = s.fma(minima, s.splat(Group(&tokens[t]).sum()), out[t][v]);
                    }
                }
                // The super-blocks' scales, which halves of them have more than once.
                let scales = if has_halves {
                    numbers::<S, 1>(s, groups, v)
                } else {
                    numbers::<S, 0>(s, &groups[group_bytes::<S>()..], v)
                };
                let scale = s.mul(s.as_f(scales), scale);
                if has_halves {
                    let excess = s.splat(-((1 << (BITS - 1)) as f32));
                    out[t][v] = s.fma(s.to_f(added), s.mul(scale, excess), out[t][v]);
                }
                out[t][v] = s.fma(s.to_f(acc[t][v]), scale, out[t][v]);
            }
        }
    }
    for (out, products) in out.iter().zip(products) {
        for (v, out) in out.iter().enumerate() {
            s.store_f(*out, &mut products[v * S::LANES..]);
        }
    }
}

/// Writes the products of `T` tokens with the rows of a panel.
#[inline(always)]
fn multiply<S: Simd, const T: usize>(
    s: S,
    panel: &[u8],
    codes: Codes,
    tokens: &[Groups<T>],
    products: &mut [[f32; MAX_ROWS]; T],
) {
    match codes {
        Codes::Four if S::SMALL_SUMS => tile::<S, T, 4>(s, panel, tokens, products),
        Codes::Five if S::SMALL_SUMS => tile::<S, T, 5>(s, panel, tokens, products),
        Codes::FourShared if S::SMALL_SUMS => tile_of_super_blocks::<S, T, 4>(s, panel, tokens, products),
        Codes::FiveShared if S::SMALL_SUMS => tile_of_super_blocks::<S, T, 5>(s, panel, tokens, products),
        Codes::ThreeShared if S::SMALL_SUMS => tile_of_super_blocks::<S, T, 3>(s, panel, tokens, products),
        Codes::SixShared if S::SMALL_SUMS => tile_of_super_blocks::<S, T, 6>(s, panel, tokens, products),
        Codes::EightShared => tile_of_shared::<S, T>(s, panel, tokens, products),
        _ => tile::<S, T, 8>(s, panel, tokens, products),
    }
}

/// The most tokens that are multiplied at once.
const MAX_TOKENS: usize = 6;

/// Room for products of these with a panel's rows, and with those of another one.
type Room = [[[f32; MAX_ROWS]; MAX_TOKENS]; 2];

/// See [`crate::Isa::gemm`] and [`crate::Isa::gemm_gated`].
pub(crate) struct Gemm<'a> {
    pub first: Packed<'a>,
    /// With as many others the product is `act(first) * second`.
    pub second: Option<(Packed<'a>, Activation)>,
    pub n_rows: usize,
    pub acts: Acts<'a>,
    pub tokens: &'a [usize],
    /// Room for tokens that do not lie in a tile of their own
    pub gathered: &'a mut Vec<u8>,
    pub out: &'a mut dyn Out,
}

impl Gemm<'_> {
    /// Multiplies the panels with `T` tokens.
    #[inline(always)]
    fn tokens<S: Simd, const T: usize>(&mut self, s: S, tokens: &[usize; T], room: &mut Room) {
        let (rows, n_bytes) = (panel_rows::<S>(), self.acts.n_groups() * group_bytes::<S>());
        let is_tile = tokens.windows(2).all(|two| two[0] + 1 == two[1]);
        let tile = match self.acts.tile(tokens[0]) {
            Some((tile, n)) if is_tile && n == T => tile,
            _ => {
                gather(self.acts, tokens, self.gathered);
                &self.gathered[..]
            }
        };
        let groups = tile.as_chunks().0.as_chunks::<T>().0;
        let [first, second] = room.each_mut().map(|room| room.first_chunk_mut::<T>().expect("as many tokens"));
        for (p, panel) in self.first.bytes.chunks_exact(n_bytes).enumerate() {
            multiply(s, panel, Codes::of::<S>(self.first.format, self.first.is_kept), groups, first);
            if let Some((packed, act)) = self.second {
                let panel = &packed.bytes[p * n_bytes..][..n_bytes];
                multiply(s, panel, Codes::of::<S>(packed.format, packed.is_kept), groups, second);
                for (a, b) in first.iter_mut().zip(&*second) {
                    for v in (0..rows).step_by(S::LANES) {
                        let (gate, up) = (s.load_f(&a[v..]), s.load_f(&b[v..]));
                        s.store_f(s.mul(act.of(s, gate), up), &mut a[v..]);
                    }
                }
            }
            let range = p * rows..self.n_rows.min((p + 1) * rows);
            for (&token, x) in tokens.iter().zip(&*first) {
                let out = &mut self.out.token(token)[range.clone()];
                // Of whole panels the number of rows is known here, and they are copied faster.
                if out.len() == rows {
                    for i in (0..rows).step_by(S::LANES) {
                        s.store_f(s.load_f(&x[i..]), &mut out[i..]);
                    }
                } else {
                    out.copy_from_slice(&x[..range.len()]);
                }
            }
        }
    }
}

impl Kernel for Gemm<'_> {
    type Out = ();

    #[inline(always)]
    fn call<S: Simd>(mut self, s: S) {
        let n_bytes = self.n_rows.div_ceil(panel_rows::<S>()) * self.acts.n_groups() * group_bytes::<S>();
        assert!(
            self.first.bytes.len() == n_bytes && self.second.is_none_or(|(p, _)| p.bytes.len() == n_bytes),
            "panels of these activations"
        );
        let mut formats = std::iter::once(self.first.format).chain(self.second.map(|second| second.0.format));
        assert!(self.acts.shares_scales() || !formats.any(Format::shares_scales), "activations that share scales");
        let (mut rest, mut room) = (self.tokens, [[[0.0f32; MAX_ROWS]; MAX_TOKENS]; 2]);
        while !rest.is_empty() {
            // No closure: it would be without the instructions, see `Simd`.
            macro_rules! run {
                ($t:literal) => {{
                    let (now, later) = rest.split_first_chunk::<$t>().expect("as many tokens");
                    self.tokens(s, now, &mut room);
                    rest = later;
                }};
            }
            match rest.len().min(S::GEMM_TOKENS) {
                6.. => run!(6),
                5 => run!(5),
                4 => run!(4),
                3 => run!(3),
                2 => run!(2),
                _ => run!(1),
            }
        }
    }
}
