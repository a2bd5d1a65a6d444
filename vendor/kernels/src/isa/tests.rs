//! Compares each method of each instruction set with its definition.

use fastrand::Rng;

use super::{Kernel, Simd};
use crate::{Isa, math};

struct Check;

fn lanes<S: Simd>(s: S, x: S::I) -> Vec<i32> {
    let mut out = vec![0; 4 * S::LANES];
    s.store_i(x, &mut out);
    out.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn from_lanes<S: Simd>(s: S, x: &[i32]) -> S::I {
    s.load_i(&x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

fn floats<S: Simd>(s: S, x: S::F) -> Vec<f32> {
    let mut out = vec![0.0; S::LANES];
    s.store_f(x, &mut out);
    out
}

fn bytes(rng: &mut Rng, n: usize) -> Vec<u8> {
    (0..n).map(|_| rng.u8(..)).collect()
}

fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1024.0 + fraction) * 2f32.powi(e - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// Equal bits, or NaN both.
fn assert_same(a: &[f32], b: &[f32]) {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    assert!(a.len() == b.len() && a.iter().zip(b).all(same), "{a:?} {b:?}");
}

/// The 4-bit codes of blocks: lower nibbles first.
fn nibbles(blocks: &[&[u8]]) -> Vec<u8> {
    blocks.iter().flat_map(|b| b.iter().map(|x| x & 15).chain(b.iter().map(|x| x >> 4))).collect()
}

/// The bytes of vectors.
fn weights<S: Simd>(s: S, x: [S::I; 4]) -> Vec<u8> {
    let mut out = vec![0; 64];
    x.iter().zip(out.chunks_exact_mut(4 * S::LANES)).for_each(|(x, out)| s.store_i(*x, out));
    out
}

impl Kernel for Check {
    type Out = ();

    fn call<S: Simd>(self, s: S) {
        let n = S::LANES;
        assert!(16 % n == 0 && n >= 4);
        let mut rng = Rng::with_seed(1);
        for _ in 0..200 {
            self.integers(s, &mut rng);
            self.codes(s, &mut rng);
            self.floats(s, &mut rng);
        }
        for bits in 0..=u16::MAX {
            assert_same(&[s.f16(bits)], &[half(bits)]);
        }
        for first in (0..=u16::MAX).step_by(n) {
            let bits: Vec<u16> = (0..n as u16).map(|i| first + i).collect();
            let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
            assert_same(&floats(s, s.load_f16(&bytes)), &bits.iter().map(|&b| half(b)).collect::<Vec<_>>());
        }
        // Each 16-bit float, and each half-way to the next and its neighbours.
        for bits in 0..0x7c00u16 {
            let (x, next) = (half(bits), if bits == 0x7bff { 65536.0 } else { half(bits + 1) });
            let middle = (x + next) / 2.0;
            let even = bits + bits % 2;
            for (x, expected) in [(x, bits), (middle.next_down(), bits), (middle, even), (middle.next_up(), bits + 1)] {
                let mut out = vec![7; 2 * n + 1];
                s.store_f16(s.splat(-x), &mut out);
                assert_eq!((&out[..2], out[2 * n]), (&(expected | 0x8000).to_le_bytes()[..], 7), "{x}");
            }
        }
        for (x, expected) in
            [(f32::INFINITY, f32::INFINITY), (-1e9, f32::NEG_INFINITY), (f32::NAN, f32::NAN), (1e-9, 0.0)]
        {
            let mut out = vec![7; 2 * n];
            s.store_f16(s.splat(x), &mut out);
            assert_same(&floats(s, s.load_f16(&out)), &vec![expected; n]);
        }
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        for mask in 0..1u32 << n {
            let mut out = vec![-1.0; n + 1];
            s.compress(s.load_f(&x), mask, &mut out);
            let kept: Vec<f32> = (0..n).filter(|i| mask >> i & 1 == 1).map(|i| i as f32).collect();
            assert_eq!((&out[..kept.len()], out[n]), (&kept[..], -1.0), "{mask:b}");
        }
        for n in -126..=127 {
            assert_eq!(floats(s, s.exp2_i(s.splat_i(n)))[0], 2f32.powi(n));
        }
        for i in -8730..8800 {
            let x = i as f32 / 100.0;
            let (y, exact) = (floats(s, math::exp(s, s.splat(x)))[0], f64::from(x).exp());
            assert!((f64::from(y) - exact).abs() < exact * 3e-7, "e^{x}: {y}");
        }
        assert!(floats(s, math::exp(s, s.splat(f32::NAN))).iter().all(|x| x.is_nan()));
    }
}

impl Check {
    fn integers<S: Simd>(&self, s: S, rng: &mut Rng) {
        let n = S::LANES;
        let (a, b, x) = (bytes(rng, 4 * n), bytes(rng, 4 * n), rng.i32(..));
        // The largest codes that a small sum has room for, and activations of all sizes.
        for (n_products, most) in [(8, 15), (4, 31), (2, 63), (1, 127)] {
            let (mut small, mut sums) = (s.splat_i(0), vec![x / 2; n]);
            for _ in 0..n_products {
                let codes: Vec<u8> = (0..4 * n).map(|_| if rng.bool() { most } else { rng.u8(..=most) }).collect();
                let acts: Vec<u8> =
                    (0..4 * n).map(|_| if rng.bool() { -127 } else { rng.i8(-127..) }).map(|x: i8| x as u8).collect();
                small = s.add_products(small, s.load_i(&codes), s.load_i(&acts));
                for (i, (c, x)) in codes.iter().zip(&acts).enumerate() {
                    sums[i / 4] += i32::from(*c) * i32::from(*x as i8);
                }
            }
            assert_eq!(lanes(s, s.add_i(s.splat_i(x / 2), s.whole(small))), sums);
            // As large as scales of blocks are.
            let factors: Vec<i16> = (0..2 * n).map(|_| rng.i16(-128..128)).collect();
            let vector = s.load_i(&factors.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>());
            let scaled = |half: usize| {
                let lanes = sums.iter().zip(factors.chunks(2));
                lanes.map(|(sum, both)| 3 + (sum - x / 2) * i32::from(both[half])).collect::<Vec<i32>>()
            };
            assert_eq!(lanes(s, s.add_scaled::<false>(s.splat_i(3), small, vector)), scaled(0));
            assert_eq!(lanes(s, s.add_scaled::<true>(s.splat_i(3), small, vector)), scaled(1));
            let (codes, acts) = (vec![most; 4 * n], [rng.i8(-127..), -127, rng.i8(-127..), -127].map(|x| x as u8));
            let acts: Vec<u8> = acts.into_iter().cycle().take(4 * n).collect();
            let product = i32::from(most) * acts[..4].iter().map(|&x| i32::from(x as i8)).sum::<i32>();
            let twice: Vec<i16> = factors.chunks(2).flat_map(|both| [both[0]; 2]).collect();
            let by = s.load_i(&twice.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>());
            let scaled = factors.chunks(2).map(|both| 5 + product * i32::from(both[0]));
            let sums = s.add_scaled_products(s.splat_i(5), s.load_i(&codes), s.load_i(&acts), by);
            assert_eq!(lanes(s, sums), scaled.collect::<Vec<i32>>());
            let others: Vec<i16> = (0..2 * n).map(|_| rng.i16(..)).collect();
            let other = s.load_i(&others.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>());
            let pairs = factors.chunks(2).zip(others.chunks(2));
            let pairs = pairs.map(|(a, b)| -7 + i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]));
            assert_eq!(lanes(s, s.add_pairs(s.splat_i(-7), vector, other)), pairs.collect::<Vec<i32>>());
        }
        assert_eq!(lanes(s, s.splat_i(x)), vec![x; n]);
        let word = |b: &[u8], i: usize| i32::from_le_bytes(b[4 * i..][..4].try_into().unwrap());
        let words: Vec<i32> = (0..n).map(|i| word(&a, i)).collect();
        assert_eq!(lanes(s, s.load_i(&a)), words);
        let (table, numbers): (_, [u32; 16]) = (bytes(rng, 128), std::array::from_fn(|_| rng.u32(..32)));
        let expected: Vec<i32> = numbers[..n].iter().map(|&i| word(&table, i as usize)).collect();
        assert_eq!(lanes(s, s.words(&table, &numbers)), expected);
        let numbers = numbers.map(|i| i % 16);
        let expected: Vec<i32> = numbers[..n].iter().map(|&i| word(&table, i as usize)).collect();
        assert_eq!(lanes(s, s.words(&table[..64], &numbers)), expected);
        let expected: Vec<i32> = (0..n).map(|i| word(&a, i).rotate_right(numbers[i])).collect();
        assert_eq!(lanes(s, s.rotate(s.load_i(&a), &numbers)), expected);
        assert_eq!(floats(s, s.to_f(s.load_i(&a))), words.iter().map(|&x| x as f32).collect::<Vec<_>>());
        let mut out = vec![7; 4 * n + 1];
        s.store_i(s.add_bytes(s.load_i(&a), s.load_i(&b)), &mut out);
        assert!((0..4 * n).all(|i| out[i] == a[i].wrapping_add(b[i])) && out[4 * n] == 7);
        s.store_i(s.low_nibbles(s.load_i(&a)), &mut out);
        assert!((0..4 * n).all(|i| out[i] == a[i] & 15));
        s.store_i(s.high_nibbles(s.load_i(&a)), &mut out);
        assert!((0..4 * n).all(|i| out[i] == a[i] >> 4));
        s.store_i(s.bits::<3, 5>(s.load_i(&a)), &mut out);
        assert!((0..4 * n).all(|i| out[i] == a[i] >> 3 & 5));
        s.store_i(s.with_bits::<2, 0x1c>(s.low_nibbles(s.load_i(&b)), s.load_i(&a)), &mut out);
        assert!((0..4 * n).all(|i| out[i] == b[i] & 15 | a[i] << 2 & 0x1c));
        let bits = rng.u64(..);
        s.store_i(s.sixteens(bits), &mut out);
        assert!((0..4 * n).all(|i| u64::from(out[i]) == 16 * (bits >> i & 1)));
        let (first, upper) = (4 * n * rng.usize(..=32 / n), bytes(rng, 32));
        s.store_i(s.upper_bits::<2>(&upper, first % 128), &mut out);
        assert!((0..4 * n).all(|i| out[i] & 3 == upper[(first + i) % 32] >> (2 * ((first % 128 + i) / 32)) & 3));
        s.store_i(s.upper_bits::<4>(&upper, first % 64), &mut out);
        assert!((0..4 * n).all(|i| out[i] & 15 == upper[(first + i) % 32] >> (4 * ((first % 64 + i) / 32)) & 15));
        // Codes of activations and of weights: no -128 among the former.
        let acts: Vec<u8> = b.iter().map(|&b| if b == 0x80 { 0x81 } else { b }).collect();
        for w in [a.clone(), a.iter().map(|x| x & 15).collect(), vec![0x80; 4 * n], vec![0x7f; 4 * n]] {
            for acts in [acts.clone(), vec![0x81; 4 * n], vec![0x7f; 4 * n]] {
                let weight = |i: usize| if S::OFFSET == 0 { i32::from(w[i] as i8) } else { i32::from(w[i]) };
                let product = |i: usize| weight(i) * i32::from(acts[i] as i8);
                let expected: Vec<i32> = (0..n).map(|l| 100 + (4 * l..4 * l + 4).map(product).sum::<i32>()).collect();
                assert_eq!(lanes(s, s.dot(s.splat_i(100), s.load_i(&w), s.load_i(&acts))), expected);
            }
        }
        let small: Vec<i32> = (0..n).map(|_| rng.i32(-128..128)).collect();
        let mut out = vec![7; n + 1];
        s.store_bytes(from_lanes(s, &small), &mut out);
        assert!((0..n).all(|i| out[i] as i8 == small[i] as i8) && out[n] == 7);
        let mut square: Vec<S::I> =
            (0..n).map(|i| from_lanes(s, &(0..n).map(|j| (i * n + j) as i32).collect::<Vec<_>>())).collect();
        s.transpose(&mut square);
        for (i, row) in square.iter().enumerate() {
            assert_eq!(lanes(s, *row), (0..n).map(|j| (j * n + i) as i32).collect::<Vec<_>>());
        }
        let row = |i: usize| from_lanes(s, &(0..n).map(|j| (i * n + j) as i32).collect::<Vec<_>>());
        let mut fours: [S::I; 4] = std::array::from_fn(row);
        s.transpose_fours(&mut fours);
        for (i, row) in fours.iter().enumerate() {
            assert_eq!(lanes(s, *row), (0..n).map(|j| (j % 4 * n + j / 4 * 4 + i) as i32).collect::<Vec<_>>());
        }
    }

    fn codes<S: Simd>(&self, s: S, rng: &mut Rng) {
        let n = S::LANES;
        let (a, b, long) = (bytes(rng, 16), bytes(rng, 16), bytes(rng, 32));
        let tables: [[u8; 16]; 2] = [(); 2].map(|()| std::array::from_fn(|_| rng.u8(..)));
        let in_blocks = nibbles(&[&a, &b]);
        let interleaved: Vec<u8> = long.iter().map(|x| x & 15).chain(long.iter().map(|x| x >> 4)).collect();
        let looked_up = |codes: &[u8]| -> Vec<u8> {
            codes.iter().enumerate().map(|(i, &c)| tables[i / 32][usize::from(c)]).chain([7]).collect()
        };
        let mut out = vec![7; 65];
        s.look_up([&a, &b], &tables, &mut out);
        assert_eq!(out, looked_up(&in_blocks));
        s.look_up_interleaved(&long, &tables, &mut out);
        assert_eq!(out, looked_up(&interleaved));
        let other = bytes(rng, 32);
        let both: Vec<u8> = long.iter().chain(&other).map(|b| b.wrapping_add(S::OFFSET as u8)).collect();
        assert_eq!(weights(s, s.unpack_bytes([&long, &other])), both);
        let (mask, mut out) = (rng.u32(..) & rng.u32(..) | rng.u32(..) & 0xff, vec![7; 33]);
        s.compress_codes(long.first_chunk().unwrap(), mask, &mut out);
        let kept: Vec<u8> = (0..32).filter(|i| mask >> i & 1 == 1).map(|i| long[i]).collect();
        assert_eq!((&out[..kept.len()], out[32]), (&kept[..], 7), "{mask:b}");
        let eight: [u8; 8] = a[..8].try_into().unwrap();
        assert_same(&s.scale_bytes(eight, 0.3), &eight.map(|b| f32::from(b) * 0.3));
        let signed: Vec<f32> = long[..n].iter().map(|&b| f32::from(b as i8)).collect();
        assert_same(&floats(s, s.load_i8(&long)), &signed);
        let (mut low, mut high) = ([7.0; 17], [7.0; 17]);
        s.decode_nibbles(&a, [0.5, 0.25], [3.0, -2.0], &mut low, &mut high);
        for i in 0..16 {
            let expected = (f32::from(a[i] & 15) * 0.5 + 3.0, f32::from(a[i] >> 4) * 0.25 - 2.0);
            assert_eq!((low[i], high[i]), expected);
        }
        assert_eq!((low[16], high[16]), (7.0, 7.0));
        let x: [f32; 16] = std::array::from_fn(|i| i as f32);
        let h = |b: &[u8]| half(u16::from_le_bytes([b[0], b[1]]));
        for v in 0..16 / n {
            let expected: Vec<f32> = (0..n).map(|i| if v * n + i < 8 { h(&a) } else { h(&b) }).collect();
            assert_same(&floats(s, s.pair_f16(&a, &b, v)), &expected);
        }
        let in_turn: Vec<f32> = (0..n).map(|i| x[3 + i % 2]).collect();
        assert_same(&floats(s, s.splat_two(&[x[3], x[4]])), &in_turn);
        let both = |x: i16| i32::from(x as u16) | i32::from(x) << 16;
        let places: [u8; 16] = std::array::from_fn(|_| rng.u8(..8));
        let expected: Vec<f32> = places[..n].iter().map(|&p| f32::from(eight[usize::from(p)] as i8)).collect();
        assert_same(&floats(s, s.load_places(&eight, &places)), &expected);
        let signed: Vec<i32> = (0..n).map(|i| both((a[8 + i / 4] as i8).into())).collect();
        assert_eq!(lanes(s, s.factors_of_fours(a.first_chunk().unwrap(), 8)), signed);
        let blocks = bytes(rng, 320);
        let whole: [f32; 4] = std::array::from_fn(|_| rng.f32());
        let fours: Vec<f32> = (0..n).map(|i| whole[i / 4]).collect();
        assert_same(&floats(s, s.each_four(&whole)), &fours);
        let apart = s.load_words(&blocks, 18);
        let word = |i: usize| i32::from_le_bytes(blocks[18 * i..][..4].try_into().unwrap());
        assert_eq!(lanes(s, apart), (0..n).map(word).collect::<Vec<_>>());
        let halves = |at: usize| (0..n).map(|i| h(&blocks[18 * i + at..])).collect::<Vec<f32>>();
        assert_same(&floats(s, s.half_f16::<false>(apart)), &halves(0));
        assert_same(&floats(s, s.half_f16::<true>(apart)), &halves(2));
        let mut out = vec![0; 4 * n];
        for four in 0..8 {
            s.store_i(s.sixteens_of_four(apart, four), &mut out);
            assert!((0..4 * n).all(|i| i32::from(out[i]) == 16 * (word(i / 4) >> (4 * four + i % 4) & 1)));
        }
        for k in 0..4 {
            let expected: Vec<i32> = (0..n).map(|i| (word(i / 4 * 4 + k) as u32 >> (2 * (i % 4))) as i32).collect();
            assert_eq!(lanes(s, s.pairs_of_bits(apart, k)), expected);
        }
        s.store_i(s.load_pieces(&blocks[2..], 18), &mut out);
        assert!((0..4 * n).all(|i| out[i] == blocks[2 + i / 16 * 18 + i % 16]));
    }

    fn floats<S: Simd>(&self, s: S, rng: &mut Rng) {
        let n = S::LANES;
        let special = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-40];
        let mut any = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| if rng.u8(0..4) == 0 { rng.choice(special).unwrap() } else { rng.f32() * 200.0 - 100.0 })
                .collect()
        };
        let (a, b, c) = (any(n), any(n), any(n));
        let [va, vb, vc] = [&a, &b, &c].map(|x| s.load_f(x));
        let map = |f: &dyn Fn(f32, f32) -> f32| a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect::<Vec<f32>>();
        assert_same(&floats(s, va), &a);
        assert_same(&floats(s, s.as_f(s.as_i(va))), &a);
        assert_eq!(lanes(s, s.as_i(va)), a.iter().map(|x| x.to_bits() as i32).collect::<Vec<_>>());
        assert_same(&floats(s, s.splat(a[0])), &vec![a[0]; n]);
        assert_same(&floats(s, s.add(va, vb)), &map(&|a, b| a + b));
        assert_same(&floats(s, s.sub(va, vb)), &map(&|a, b| a - b));
        assert_same(&floats(s, s.mul(va, vb)), &map(&|a, b| a * b));
        assert_same(&floats(s, s.div(va, vb)), &map(&|a, b| a / b));
        assert_same(&floats(s, s.max(va, vb)), &map(&|a, b| if a > b { a } else { b }));
        assert_same(&floats(s, s.min(va, vb)), &map(&|a, b| if a < b { a } else { b }));
        let near = |x: f32, y: f32| x == y || x.is_nan() && y.is_nan() || (x - y).abs() < 1e-2;
        let sums = floats(s, s.fma(va, vb, vc));
        assert!((0..n).all(|i| near(sums[i], a[i].mul_add(b[i], c[i]))), "{a:?} {b:?} {c:?} {sums:?}");
        // The larger magnitude, or NaN.
        let sizes: Vec<f32> = a.iter().map(|a| a.abs()).collect();
        let larger = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b.abs()) };
        let expected: Vec<f32> = sizes.iter().zip(&b).map(|(&a, &b)| larger(a, b)).collect();
        assert_same(&floats(s, s.max_abs(s.load_f(&sizes), vb)), &expected);
        assert_same(&[s.reduce_max_or_nan(s.load_f(&sizes))], &[sizes.iter().fold(0.0, |a, &b| larger(a, b))]);
        let numbers: Vec<f32> = a.iter().map(|&x| if x.is_nan() { 1.0 } else { x }).collect();
        assert_eq!(s.reduce_max(s.load_f(&numbers)), numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        assert!(near(s.reduce_sum(va), a.iter().sum()));
        let whole: Vec<f32> = b.iter().map(|x| if x.is_finite() { x * 2.0 } else { 3.5 }).collect();
        let rounded: Vec<i32> = whole.iter().map(|x| x.round_ties_even() as i32).collect();
        assert_eq!(lanes(s, s.round(s.load_f(&whole))), rounded);
        let halves: Vec<f32> = rounded.iter().map(|&x| x as f32 + 0.5).collect();
        let even: Vec<i32> = halves.iter().map(|x| x.round_ties_even() as i32).collect();
        assert_eq!(lanes(s, s.round(s.load_f(&halves))), even);
        let (x, y) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
        assert_eq!(s.reduce_sum(s.fma_eight(&x, &y, s.splat(0.0))), 110.0);
    }
}

#[test]
fn methods() {
    for isa in Isa::all() {
        println!("{isa}");
        isa.run(Check);
    }
}
