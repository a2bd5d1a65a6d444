//! Attention of any rows, each to a range of cells of its sequence, by our own kernels.

use std::ops::Range;

use ggml::{Builder, Division, Op, Parts, Source, Tensor, Type, dequantize_row};
use kernels::{Cells, Elements, Isa, MAX_GEMV_TOKENS, Query, Scores};

/// Tokens whose attention is computed together: enough that each key is read for many queries, few enough for all threads.
const TOKENS_TOGETHER: usize = 96;

/// Cells that a few tokens' attention goes through in one piece: with fewer heads than threads, or a number of them that these do not
/// divide, the pieces are what threads share. The size is fixed, so that results do not depend on the number of threads.
const PIECE: usize = 1024;

/// Queries F32 `[d, n_head, n_tokens]`, keys and values `[d, n_head_kv, n_cells, n_seq]` of a cache, for each token its sequence, its first
/// cell and the cell after its last one, I32 `[3, n_tokens]` (and the sinks of all the model's heads F32 `[heads]`, and the kept heads I32
/// `[n_head]`) -> F32 `[d * n_head, n_tokens]`. There are `n_rep` query heads to a key and value head.
pub fn attend<'g>(
    g: &Builder<'g>,
    sources: &[Tensor<'g>],
    scores: Scores,
    n_rep: usize,
    has_sinks: bool,
) -> Tensor<'g> {
    let ([d, n_head, n, _], n_cells) = (sources[0].ne(), sources[1].ne()[2]);
    let n_pieces = if n <= MAX_GEMV_TOKENS { n_cells.div_ceil(PIECE) } else { 1 };
    let op = Attend { scores, n_rep, d, has_sinks, n_pieces, has_many: n > MAX_GEMV_TOKENS };
    if n_pieces == 1 {
        return g.custom(Type::F32, [d * n_head, n, 1, 1], sources, op);
    }
    let pieces = g.custom(Type::F32, [(d + 1) * n_head, n_pieces * n, 1, 1], sources, op);
    g.custom(Type::F32, [d * n_head, n, 1, 1], &[pieces], PutTogether { d, n_pieces })
}

/// What [`attend`] takes -> F32 `[d * n_head, n_tokens]`, or of several pieces `[(d + 1) * n_head, n_pieces * n_tokens]`: each head's
/// result over the cells of each piece, and the logarithm of its sum of `e^score`.
#[derive(Debug)]
struct Attend {
    /// What becomes of products of queries and keys
    scores: Scores,
    /// Query heads to a key and value head
    n_rep: usize,
    /// Width of a head
    d: usize,
    /// Heads have sinks
    has_sinks: bool,
    /// Pieces of [`PIECE`] cells
    n_pieces: usize,
    /// There are more than [`MAX_GEMV_TOKENS`] tokens: each is computed as the same bits, whichever others come with it
    has_many: bool,
}

/// The cells of a piece that a token looks at.
struct Sight {
    /// The row of the result
    row: usize,
    /// The token
    t: usize,
    seq: usize,
    cells: Range<usize>,
    /// These are the first cells that the token looks at: their scores have the sink
    has_sink: bool,
}

impl Op for Attend {
    fn division(&self, ne: [usize; 4]) -> Division {
        match ne[1] <= self.n_pieces * MAX_GEMV_TOKENS {
            // Heads that read the same keys together.
            true => Division { rows: 1, columns: self.width() * self.n_rep },
            false => Division { rows: (TOKENS_TOGETHER / self.n_rep).max(1), columns: ne[0] },
        }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let [q, k, v, sights] = [0, 1, 2, 3].map(|i| sources[i]);
        let sinks: Option<&[f32]> = self.has_sinks.then(|| sources[4].row(0));
        let kept: Option<&[i32]> = sources.get(4 + usize::from(self.has_sinks)).map(|s| s.row(0));
        let of_model = |head: usize| kept.map_or(head, |kept| kept[head] as usize);
        let kv_head = |head: usize| of_model(head) / self.n_rep;
        let (d, width, n_pieces) = (self.d, self.width(), self.n_pieces);
        let sight = |row: usize| {
            let (t, piece) = (row / n_pieces, row % n_pieces);
            let [seq, first, end] = *sights.row::<i32>(t).first_chunk().expect("three numbers");
            let mut cells = first as usize..end as usize;
            let has_sink = n_pieces == 1 || piece == cells.start / PIECE;
            if n_pieces > 1 {
                cells = cells.start.max(piece * PIECE)..cells.end.min((piece + 1) * PIECE);
            }
            Sight { row, t, seq: seq as usize, cells, has_sink }
        };
        while let Some(mut out) = parts.next() {
            let columns = out.columns();
            let heads: Vec<usize> = (columns.start / width..columns.end / width).collect();
            let (seen, unseen): (Vec<Sight>, Vec<Sight>) = out.rows().map(sight).partition(|s| !s.cells.is_empty());
            for Sight { row, .. } in unseen {
                for out in out.row::<f32>(row).chunks_exact_mut(width) {
                    out.fill(0.0);
                    out[d..].fill(f32::NEG_INFINITY);
                }
            }
            // Tokens of one sequence with heads that read the same keys.
            for sights in seen.chunk_by(|a, b| a.seq == b.seq) {
                for heads in heads.chunk_by(|&a, &b| kv_head(a) == kv_head(b)) {
                    let (seq, head) = (sights[0].seq, kv_head(heads[0]));
                    let rows: Vec<(usize, usize)> =
                        sights.iter().flat_map(|s| heads.iter().map(move |&h| (s.row, h))).collect();
                    let queries: Vec<Query> = (sights.iter())
                        .flat_map(|s| {
                            heads.iter().map(|&h| Query {
                                q: q.elements([h, s.t, 0]),
                                visible: s.cells.clone(),
                                sink: sinks.filter(|_| s.has_sink).map(|sinks| sinks[of_model(h)]),
                            })
                        })
                        .collect();
                    let decode = |ty: Type| move |b: &[u8], o: &mut [f32]| dequantize_row(ty, b, o);
                    let (decode_k, decode_v) = (decode(k.ty()), decode(v.ty()));
                    let keys = cells(&k, head, seq, &decode_k);
                    let values = cells(&v, head, seq, &decode_v);
                    Isa::best().attend(
                        &queries,
                        &keys,
                        &values,
                        self.scores,
                        self.has_many,
                        &mut |i, x, log_sum_exp| {
                            let (row, h) = rows[i];
                            let out = &mut out.row::<f32>(row)[h * width - columns.start..][..width];
                            out[..d].copy_from_slice(x);
                            out[d..].fill(log_sum_exp);
                        },
                    );
                }
            }
        }
    }
}

impl Attend {
    /// Floats of a head's result.
    fn width(&self) -> usize {
        self.d + usize::from(self.n_pieces > 1)
    }
}

/// Keys or values of one head of a sequence.
fn cells<'a>(source: &Source<'a>, head: usize, seq: usize, decode: &'a dyn Fn(&[u8], &mut [f32])) -> Cells<'a> {
    let (bytes, stride, len) = source.along(head, seq);
    let elements = match source.ty() {
        Type::F16 => Elements::F16,
        Type::Q8_0 => Elements::Q8_0,
        _ => Elements::Other(decode),
    };
    Cells { bytes, stride, len, elements }
}

/// Pieces of [`Attend`] -> F32 `[d * n_head, n_tokens]`
#[derive(Debug)]
struct PutTogether {
    d: usize,
    n_pieces: usize,
}

impl Op for PutTogether {
    fn division(&self, ne: [usize; 4]) -> Division {
        Division { rows: 1, columns: ne[0] }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let (d, n_pieces) = (self.d, self.n_pieces);
        while let Some(mut out) = parts.next() {
            for t in out.rows() {
                let pieces: Vec<&[f32]> = (0..n_pieces).map(|i| sources[0].row(t * n_pieces + i)).collect();
                for (h, out) in out.row::<f32>(t).chunks_exact_mut(d).enumerate() {
                    let heads = || pieces.iter().map(|piece| piece[h * (d + 1)..][..d + 1].split_at(d));
                    let largest = heads().map(|(_, sum)| sum[0]).fold(f32::NEG_INFINITY, f32::max);
                    // Of a piece without visible cells the weight is zero.
                    let weight = |sum: &[f32]| (sum[0] - largest).exp();
                    let total: f32 = heads().map(|(_, sum)| weight(sum)).sum();
                    out.fill(0.0);
                    for (x, sum) in heads() {
                        let weight = weight(sum) / total;
                        out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ggml::{Executor, Graph};

    use super::*;

    const D: usize = 32;
    const N_HEAD: usize = 4;
    const N_HEAD_KV: usize = 2;

    /// Attention of the last `n` tokens of `n_cells`, each of which looks back to the cell `first`: by the operation, and by definition.
    fn attended(n: usize, n_cells: usize, first: usize, sinks: &[f32]) -> [Vec<f64>; 2] {
        let mut seed = 1u32;
        let mut floats = |n: usize| -> Vec<f32> {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..n).map(|_| next()).collect()
        };
        let q = floats(D * N_HEAD * n);
        let [k, v] = [0, 1].map(|_| floats(D * N_HEAD_KV * n_cells));
        let ends: Vec<usize> = (0..n).map(|t| n_cells - n + t + 1).collect();
        let sights: Vec<i32> = ends.iter().flat_map(|&end| [0, first as i32, end as i32]).collect();
        let scores = Scores { scale: 0.5, softcap: None };
        let (graph, (slots, out)) = Graph::build(16, |g| {
            let (q, of_q) = g.input("q", Type::F32, [D, N_HEAD, n, 1]);
            let [(k, of_k), (v, of_v)] = ["k", "v"].map(|name| g.input(name, Type::F32, [D, N_HEAD_KV, n_cells, 1]));
            let (sights, of_sights) = g.input("sights", Type::I32, [3, n, 1, 1]);
            let mut sources = vec![q, k, v, sights];
            let of_sinks = (!sinks.is_empty()).then(|| {
                let (sinks, slot) = g.input("sinks", Type::F32, [N_HEAD, 1, 1, 1]);
                sources.push(sinks);
                slot
            });
            let out = attend(g, &sources, scores, N_HEAD / N_HEAD_KV, !sinks.is_empty());
            ((of_q, of_k, of_v, of_sights, of_sinks), g.output(out))
        });
        let mut executor = Executor::new(&[], Arc::default()).unwrap();
        let mut schedule = executor.schedule();
        schedule.load(graph).unwrap();
        schedule.set(slots.0, &q);
        schedule.set(slots.1, &k);
        schedule.set(slots.2, &v);
        schedule.set(slots.3, &sights);
        if let Some(slot) = slots.4 {
            schedule.set(slot, sinks);
        }
        executor.compute(&mut schedule, 2).unwrap();
        let mut got = vec![0.0f32; q.len()];
        schedule.get(out, &mut got);

        let mut want = Vec::new();
        for (t, &end) in ends.iter().enumerate() {
            for h in 0..N_HEAD {
                let q = &q[(t * N_HEAD + h) * D..][..D];
                let cell = |x: &[f32], c: usize| -> Vec<f64> {
                    let at = (c * N_HEAD_KV + h / (N_HEAD / N_HEAD_KV)) * D;
                    x[at..at + D].iter().map(|&x| f64::from(x)).collect()
                };
                let weight =
                    |c: usize| (0.5 * cell(&k, c).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum::<f64>()).exp();
                let weights: Vec<f64> = (first..end).map(weight).collect();
                let total = weights.iter().sum::<f64>() + sinks.get(h).map_or(0.0, |&s| f64::from(s).exp());
                let mut out = vec![0.0; D];
                for (c, weight) in (first..end).zip(&weights) {
                    out.iter_mut().zip(cell(&v, c)).for_each(|(out, v)| *out += weight / total * v);
                }
                want.extend(out);
            }
        }
        [got.into_iter().map(f64::from).collect(), want]
    }

    #[test]
    fn pieces_are_put_together() {
        // One piece and several, with pieces before the first cell, and more tokens than take pieces.
        for n_cells in [100, PIECE, PIECE + 1, 2 * PIECE + 100] {
            for first in [0, 50, 2 * PIECE + 10] {
                for n in [1, 3, MAX_GEMV_TOKENS + 1] {
                    for sinks in [&[][..], &[1.0, 3.0, 6.0, -1.0]] {
                        if first + n > n_cells {
                            continue;
                        }
                        let [got, want] = attended(n, n_cells, first, sinks);
                        let close = got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4);
                        assert!(close, "{n} of {n_cells} tokens from {first} on, sinks {sinks:?}: {got:?} {want:?}");
                    }
                }
            }
        }
    }
}
