//! A micro-batch: rows of any sequences at any positions, and what of their arrangement a graph depends on.

use super::kv_cache::{CacheParams, KV_STEP};

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its number in the vocabulary
    pub token: i32,
    /// Its position in its sequence
    pub pos: usize,
    /// Its sequence, one of the cache's
    pub seq: usize,
    /// Its result is wanted
    pub wanted: bool,
}

/// What is computed for the rows that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Results {
    /// F32 `[n_vocab, n_wanted]`
    Logits,
    /// F32 `[n_embd, n_wanted]`: what the output matrix makes logits of
    States,
    /// Nothing: the cache is all that counts
    Cells,
}

/// Tokens that are computed together. Rows of one sequence lie one after the other.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The tokens
    pub rows: Vec<Row>,
    /// What is computed of those that are wanted
    pub results: Results,
    /// The rows are whole texts, of which nothing is needed again: the cache may stay untouched
    pub is_whole: bool,
    /// So many rows at the beginning and at the end of a single piece run on all weights, whatever is pruned
    pub dense: [usize; 2],
    /// Of each of some equal pieces so many rows are text, and those after them fill it up: a probe takes no notice of these. Empty if all
    /// rows are text
    pub n_text: Vec<usize>,
}

/// What of a batch's arrangement its graph depends on: batches of equal layout share a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// How the rows are arranged
    pub pieces: Pieces,
    /// Cells of each sequence that attention may look at
    pub n_kv: usize,
    /// Rows that are wanted
    pub n_wanted: usize,
    /// See [`Batch::results`]
    pub results: Results,
    /// See [`Batch::is_whole`]
    pub is_whole: bool,
    /// See [`Batch::dense`]
    pub dense: [usize; 2],
    /// Some rows are no text, see [`Batch::n_text`]
    pub is_padded: bool,
}

/// How the rows of a batch are arranged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pieces {
    /// Pieces of the sequences 0.., equally long, at the same consecutive positions. Probes and ggml's attention take them side by side.
    Equal {
        /// Number of sequences
        n_seq: usize,
        /// Rows of each
        n_each: usize,
    },
    /// Rows of some sequences: the sequence and the number of its rows, piece by piece
    Any(Vec<(usize, usize)>),
}

impl Batch {
    /// Pieces of the sequences 0.., equally long, from position `first` on; of each those at `wanted`, counted within the piece.
    pub fn of_pieces(pieces: &[&[i32]], first: usize, wanted: std::ops::Range<usize>, results: Results) -> Batch {
        let rows = (pieces.iter().enumerate()).flat_map(|(seq, piece)| {
            let wanted = wanted.clone();
            piece.iter().enumerate().map(move |(i, &token)| Row {
                token,
                pos: first + i,
                seq,
                wanted: wanted.contains(&i),
            })
        });
        Batch { rows: rows.collect(), results, is_whole: false, dense: [0; 2], n_text: Vec::new() }
    }

    /// What its graph depends on.
    ///
    /// # Panics
    /// If a row is beyond the cache, rows of one sequence lie apart, or none is left beside dense ones of a single piece.
    pub fn layout(&self, cache: CacheParams) -> Layout {
        let pieces: Vec<&[Row]> = self.rows.chunk_by(|a, b| a.seq == b.seq).collect();
        let fits = |r: &Row| r.pos < cache.n_cells && r.seq < cache.n_seq;
        assert!(!self.rows.is_empty() && self.rows.iter().all(fits), "rows of the cache's sequences");
        let n_each = pieces[0].len();
        let first = pieces[0][0].pos;
        let is_equal = pieces.iter().enumerate().all(|(seq, piece)| {
            piece.len() == n_each && piece.iter().enumerate().all(|(i, r)| r.seq == seq && r.pos == first + i)
        });
        let pieces = match is_equal {
            true => Pieces::Equal { n_seq: pieces.len(), n_each },
            false => {
                let mut seqs: Vec<usize> = pieces.iter().map(|p| p[0].seq).collect();
                seqs.sort_unstable();
                assert!(seqs.windows(2).all(|s| s[0] < s[1]), "rows of one sequence lie together");
                Pieces::Any(pieces.iter().map(|p| (p[0].seq, p.len())).collect())
            }
        };
        let n_dense: usize = self.dense.iter().sum();
        assert!(
            n_dense == 0 || matches!(pieces, Pieces::Equal { n_seq: 1, n_each } if n_dense < n_each),
            "dense rows are some of a single piece"
        );
        let end = self.rows.iter().map(|r| r.pos + 1).max().expect("there are rows");
        Layout {
            pieces,
            n_kv: end.next_multiple_of(KV_STEP).min(cache.n_cells),
            n_wanted: self.rows.iter().filter(|r| r.wanted).count(),
            results: self.results,
            is_whole: self.is_whole,
            dense: self.dense,
            is_padded: !self.n_text.is_empty(),
        }
    }
}

impl Layout {
    /// The layout of the largest batches: `n_each` tokens of each of `n_seq` sequences, over `n_kv` cells.
    pub fn largest(n_seq: usize, n_each: usize, n_kv: usize, n_wanted: usize, results: Results) -> Layout {
        let pieces = Pieces::Equal { n_seq, n_each };
        Layout { pieces, n_kv, n_wanted, results, is_whole: false, dense: [0; 2], is_padded: false }
    }

    /// Rows in all.
    pub fn n_tokens(&self) -> usize {
        match &self.pieces {
            Pieces::Equal { n_seq, n_each } => n_seq * n_each,
            Pieces::Any(pieces) => pieces.iter().map(|p| p.1).sum(),
        }
    }

    /// Rows that run on all weights, whatever is pruned.
    pub fn n_dense(&self) -> usize {
        self.dense.iter().sum()
    }

    /// Sequences and rows of each, of equal pieces.
    ///
    /// # Panics
    /// If the pieces are not equal: then there is no probe.
    pub fn samples(&self) -> (usize, usize) {
        match self.pieces {
            Pieces::Equal { n_seq, n_each } => (n_seq, n_each),
            Pieces::Any(_) => panic!("only equal pieces are probed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::CacheType;

    fn params() -> CacheParams {
        let (type_k, type_v) = (CacheType::F16, CacheType::F16);
        CacheParams { n_cells: 512, n_seq: 4, type_k, type_v, flash_attn: true, exact: false }
    }

    #[test]
    fn equal_pieces_are_recognised() {
        let batch = Batch::of_pieces(&[&[1, 2, 3], &[4, 5, 6]], 255, 2..3, Results::Logits);
        let layout = batch.layout(params());
        assert_eq!(layout.pieces, Pieces::Equal { n_seq: 2, n_each: 3 });
        assert_eq!((layout.n_kv, layout.n_wanted, layout.n_tokens()), (512, 2, 6));
        let one = Batch::of_pieces(&[&[7]], 3, 0..1, Results::States).layout(params());
        assert_eq!((one.samples(), one.n_kv), ((1, 1), 256));
    }

    #[test]
    fn other_rows_are_pieces_of_their_sequences() {
        let row = |seq, pos| Row { token: 0, pos, seq, wanted: true };
        let layout = |rows: &[Row]| {
            Batch { rows: rows.to_vec(), ..Batch::of_pieces(&[], 0, 0..0, Results::Logits) }.layout(params()).pieces
        };
        assert_eq!(layout(&[row(0, 5), row(1, 6)]), Pieces::Any(vec![(0, 1), (1, 1)]));
        assert_eq!(layout(&[row(2, 5)]), Pieces::Any(vec![(2, 1)]));
        assert_eq!(layout(&[row(1, 0), row(1, 1), row(0, 9)]), Pieces::Any(vec![(1, 2), (0, 1)]));
        assert_eq!(layout(&[row(0, 3), row(0, 5)]), Pieces::Any(vec![(0, 2)]));
    }
}
