//! Attention.

use fastrand::Rng;
use kernels::{Cells, Elements, Isa, Query, Scores};

use crate::common::*;

/// Attention by its definition, and the logarithm of the sum of weights.
fn attention(query: &Query, keys: &[Vec<f32>], values: &[Vec<f32>], scores: Scores) -> (Vec<f64>, f64) {
    let q = query.q;
    let score = |k: &Vec<f32>| {
        let product = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
        let score = product * f64::from(scores.scale);
        scores.softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
    };
    let mut scores: Vec<f64> = keys.iter().map(score).collect();
    scores.extend(query.sink.map(f64::from));
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let value = |i: usize| weights.iter().zip(values).map(|(w, v)| w / sum * f64::from(v[i])).sum();
    ((0..q.len()).map(value).collect(), largest + sum.ln())
}

/// What cells are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Halves,
    /// Blocks of 32
    Bytes,
    /// Floats, which a function reads
    Floats,
}

/// Cells: their bytes, and their values.
fn any_cells(rng: &mut Rng, kind: Kind, n: usize, d: usize) -> (Vec<Vec<u8>>, Vec<Vec<f32>>) {
    let mut cell = |_| match kind {
        Kind::Halves => {
            let bytes: Vec<u8> = (0..d).flat_map(|_| any_half(rng)).collect();
            let floats = bytes.chunks_exact(2).map(half).collect();
            (bytes, floats)
        }
        Kind::Bytes => {
            let (mut bytes, mut floats) = (Vec::new(), Vec::new());
            for _ in 0..d / 32 {
                let scale = [rng.u8(..), 0x18 | rng.u8(..) & 0x83];
                let codes: Vec<i8> = (0..32).map(|_| rng.i8(..)).collect();
                bytes.extend(scale);
                bytes.extend(codes.iter().map(|&c| c as u8));
                floats.extend(codes.iter().map(|&c| half(&scale) * f32::from(c)));
            }
            (bytes, floats)
        }
        Kind::Floats => {
            let floats = any_floats(rng, d, 2.0);
            (bytes_of(&floats), floats)
        }
    };
    (0..n).map(&mut cell).unzip()
}

/// The bytes of cells with something between them, and how far it is from one to the next.
fn apart(cells: &[Vec<u8>]) -> (Vec<u8>, usize) {
    let between = [0xffu8; 10];
    (cells.iter().flat_map(|c| c.iter().chain(&between)).copied().collect(), cells[0].len() + between.len())
}

/// Results of all queries, and the logarithms of their sums.
fn attended(
    isa: Isa,
    queries: &[Query],
    keys: &[Vec<u8>],
    values: &[Vec<u8>],
    kind: Kind,
    scores: Scores,
    is_part: bool,
) -> Vec<(Vec<f32>, f32)> {
    let elements = match kind {
        Kind::Halves => Elements::F16,
        Kind::Bytes => Elements::Q8_0,
        Kind::Floats => Elements::Other(&read_floats),
    };
    let len = keys[0].len();
    let [(keys, k_stride), (values, v_stride)] = [apart(keys), apart(values)];
    let keys = Cells { bytes: &keys, stride: k_stride, len, elements };
    let values = Cells { bytes: &values, stride: v_stride, len, elements };
    let mut results = Vec::new();
    isa.attend(queries, &keys, &values, scores, is_part, &mut |i, out, log_sum_exp| {
        assert_eq!(i, results.len(), "query by query");
        results.push((out.to_vec(), log_sum_exp));
    });
    results
}

#[test]
fn attend() {
    let mut rng = Rng::with_seed(9);
    for (number, d) in [1, 3, 12, 20, 64, 80, 96, 100, 128].into_iter().cycle().take(128).enumerate() {
        // Few queries take another way, and those of equal sight together.
        let n_queries = if number % 2 == 0 { rng.usize(1..9) } else { rng.usize(1..20) };
        let (n_cells, kind) = (rng.usize(1..200), [Kind::Floats, Kind::Halves, Kind::Bytes][number % 3]);
        let kind = if d % 32 == 0 || kind != Kind::Bytes { kind } else { Kind::Halves };
        let (keys, key_floats) = any_cells(&mut rng, kind, n_cells, d);
        let (values, value_floats) = any_cells(&mut rng, kind, n_cells, d);
        let q: Vec<Vec<f32>> = (0..n_queries).map(|_| any_floats(&mut rng, d, 2.0)).collect();
        // Half of the cases begin at the first cell, as texts without a window do.
        let any_range = |rng: &mut Rng| {
            let end = rng.usize(1..=n_cells);
            (if number % 4 < 2 { 0 } else { rng.usize(0..end) })..end
        };
        let mut visible = any_range(&mut rng);
        let mut query = |q| {
            if rng.u8(0..3) == 0 {
                visible = any_range(&mut rng);
            }
            let sink = (number % 5 == 0).then(|| rng.f32() * 8.0 - 4.0);
            Query { q, visible: visible.clone(), sink }
        };
        let queries: Vec<Query> = q.iter().map(|q| query(q)).collect();
        let scale = rng.choice([1.0 / (d as f32).sqrt(), 3.0]).unwrap();
        let scores = Scores { scale, softcap: (number % 7 < 3).then_some(5.0) };
        for isa in isas() {
            let of_many = attended(isa, &queries, &keys, &values, kind, scores, true);
            for (i, together) in of_many.iter().enumerate() {
                let alone = attended(isa, &queries[i..=i], &keys, &values, kind, scores, true);
                assert_eq!(alone, std::slice::from_ref(together), "{isa} d {d}, query {i} of {n_queries}");
            }
            let out = attended(isa, &queries, &keys, &values, kind, scores, false);
            assert_eq!(out.len(), n_queries);
            for (query, (out, log_sum_exp)) in queries.iter().zip(out) {
                let n = query.visible.clone();
                let (exact, sum) = attention(query, &key_floats[n.clone()], &value_floats[n.clone()], scores);
                let close = |(x, exact): (&f32, &f64)| (f64::from(*x) - exact).abs() < 1e-3 * (1.0 + exact.abs());
                assert!(
                    (f64::from(log_sum_exp) - sum).abs() < 1e-3 * (1.0 + sum.abs()),
                    "{isa} d {d}, {n:?}: {log_sum_exp} {sum}"
                );
                assert!(out.len() == d && out.iter().zip(&exact).all(close), "{isa} d {d}, {n:?}: {out:?} {exact:?}");
            }
        }
    }
}

#[test]
fn nan_stays() {
    for isa in isas() {
        for (q, k, v) in [(f32::NAN, 1.0, 1.0), (1.0, f32::NAN, 1.0), (1.0, 1.0, f32::NAN), (1.0, f32::INFINITY, 1.0)] {
            let cell = |special: f32, i: usize| bytes_of(&[if i == 66 { special } else { 0.5 }; 16]);
            let cells = |special: f32| (0..70).map(|i| cell(special, i)).collect::<Vec<_>>();
            let q = [q; 16];
            for n_queries in [1, 7, 9] {
                let queries = vec![Query { q: &q, visible: 0..70, sink: None }; n_queries];
                let capped = Some(2.0).filter(|_| k.is_nan() || k.is_finite());
                for softcap in [None, capped] {
                    let scores = Scores { scale: 1.0, softcap };
                    let out = attended(isa, &queries, &cells(k), &cells(v), Kind::Floats, scores, false);
                    assert!(
                        out.iter().all(|(x, sum)| x.iter().all(|x| x.is_nan()) && (sum.is_nan() || v.is_nan())),
                        "{isa} {q:?} {k} {v}: {out:?}"
                    );
                }
            }
        }
    }
}
