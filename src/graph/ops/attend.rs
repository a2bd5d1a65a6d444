//! Attention of any rows, each to a range of cells of its sequence, by our own kernels.

use std::ops::Range;

use ggml::{Division, Op, Parts, Source, Type, dequantize_row};
use kernels::{Cells, Isa, MAX_GEMV_TOKENS, Query, Scores};

/// Tokens whose attention is computed together: enough that each key is read for many queries, few enough for all threads.
const TOKENS_TOGETHER: usize = 96;

/// Queries F32 `[d, n_head, n_tokens]`, keys and values `[d, n_head_kv, n_cells, n_seq]` of a cache, for each token its sequence, its first
/// cell and the cell after its last one, I32 `[3, n_tokens]` (and the sinks of all the model's heads F32 `[heads]`, and the kept heads I32
/// `[n_head]`) -> F32 `[d * n_head, n_tokens]`.
#[derive(Debug)]
pub struct Attend {
    /// What becomes of products of queries and keys
    pub scores: Scores,
    /// Query heads to a key and value head
    pub n_rep: usize,
    /// Width of a head
    pub d: usize,
    /// Heads have sinks
    pub has_sinks: bool,
}

/// The cells that a token looks at.
struct Sight {
    seq: usize,
    cells: Range<usize>,
}

impl Op for Attend {
    fn division(&self, ne: [usize; 4]) -> Division {
        match ne[1] <= MAX_GEMV_TOKENS {
            // Heads that read the same keys together.
            true => Division { rows: 1, columns: self.d * self.n_rep },
            false => Division { rows: (TOKENS_TOGETHER / self.n_rep).max(1), columns: ne[0] },
        }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let [q, k, v, sights] = [0, 1, 2, 3].map(|i| sources[i]);
        let sinks: Option<&[f32]> = self.has_sinks.then(|| sources[4].row(0));
        let kept: Option<&[i32]> = sources.get(4 + usize::from(self.has_sinks)).map(|s| s.row(0));
        let of_model = |head: usize| kept.map_or(head, |kept| kept[head] as usize);
        let kv_head = |head: usize| of_model(head) / self.n_rep;
        let sight = |t: usize| {
            let [seq, first, end] = *sights.row::<i32>(t).first_chunk().expect("three numbers");
            Sight { seq: seq as usize, cells: first as usize..end as usize }
        };
        let d = self.d;
        while let Some(mut out) = parts.next() {
            let columns = out.columns();
            let heads: Vec<usize> = (columns.start / d..columns.end / d).collect();
            let tokens: Vec<(usize, Sight)> = out.rows().map(|t| (t, sight(t))).collect();
            // Tokens of one sequence with heads that read the same keys.
            for tokens in tokens.chunk_by(|a, b| a.1.seq == b.1.seq) {
                for heads in heads.chunk_by(|&a, &b| kv_head(a) == kv_head(b)) {
                    let (seq, head) = (tokens[0].1.seq, kv_head(heads[0]));
                    let rows: Vec<(usize, usize)> =
                        tokens.iter().flat_map(|&(t, _)| heads.iter().map(move |&h| (t, h))).collect();
                    let queries: Vec<Query> = (tokens.iter())
                        .flat_map(|(t, sight)| {
                            heads.iter().map(|&h| Query {
                                q: q.elements([h, *t, 0]),
                                visible: sight.cells.clone(),
                                sink: sinks.map(|sinks| sinks[of_model(h)]),
                            })
                        })
                        .collect();
                    let decode = |ty: Type| move |b: &[u8], o: &mut [f32]| dequantize_row(ty, b, o);
                    let (decode_k, decode_v) = (decode(k.ty()), decode(v.ty()));
                    let keys = cells(&k, head, seq, &decode_k);
                    let values = cells(&v, head, seq, &decode_v);
                    Isa::best().attend(&queries, &keys, &values, self.scores, &mut |i, x| {
                        let (t, h) = rows[i];
                        out.row::<f32>(t)[h * d - columns.start..][..d].copy_from_slice(x);
                    });
                }
            }
        }
    }
}

/// Keys or values of one head of a sequence; our kernels read 16-bit floats themselves.
fn cells<'a>(source: &Source<'a>, head: usize, seq: usize, decode: &'a dyn Fn(&[u8], &mut [f32])) -> Cells<'a> {
    let (bytes, stride, len) = source.along(head, seq);
    Cells { bytes, stride, len, decode: (source.ty() != Type::F16).then_some(decode) }
}
