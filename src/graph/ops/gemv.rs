//! Products of a few tokens with rows of weights where they are.

use ggml::{Division, Op, Part, Parts, Source};
use kernels::{Acts, GemvActs, Isa, MAX_GEMV_TOKENS};

use super::operand::{Combine, Operand, Operands, share_scales};
use super::quantize::quantize_rows;

/// `x` F32 `[k, n_tokens]` -> F32 `[n_out, n_tokens]`: products of its activations with all operands, whose types our kernels read where
/// they are. Every thread makes the activations for itself: for a few tokens that costs less than a node of its own.
///
/// The first source is `x`; the numbers of the others are in the fields.
#[derive(Debug)]
pub struct RowProduct {
    /// The weights
    pub operands: Vec<Operand>,
    /// What becomes of the products
    pub combine: Combine,
    /// Source: the gain F32 `[k]` of an RMS norm of `x` that comes first
    pub gain: Option<usize>,
    /// Of the norm
    pub eps: f32,
    /// Source: the kept units, I32 `[n_kept]`
    pub ids: Option<usize>,
}

/// The most tokens that are multiplied so. In two groups weights are read twice, the second time from the processor's own memory: that is still
/// faster than to pack them.
pub const MAX_ROW_TOKENS: usize = 2 * MAX_GEMV_TOKENS;

/// Bytes of weights that a thread takes at once: with less, a processor that reads ahead starts anew too often.
const PART_BYTES: usize = 2 << 20;

/// Rows of `bytes` in a part of a product of a few tokens that has `n_rows`: enough to be worth the tokens' preparation, few enough for
/// threads to end together.
pub fn share(bytes: usize, n_rows: usize) -> usize {
    (PART_BYTES / bytes.max(1)).min(n_rows.div_ceil(4)).max(1)
}

impl Op for RowProduct {
    fn division(&self, ne: [usize; 4]) -> Division {
        let share = share(self.operands[0].matrix.row_bytes(), ne[0]);
        Division { rows: ne[1], columns: share.next_multiple_of(Isa::best().panel_rows()) }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let ids: &[i32] = self.ids.map_or(&[], |i| sources[i].row(0));
        let [k, n, ..] = sources[0].ne();
        let operands = Operands::new(&self.operands);
        let shares_scales = share_scales(&self.operands);
        // Groups of tokens that are multiplied at once, for each operand's format, once for all parts of this thread.
        let size = n.div_ceil(n.div_ceil(MAX_GEMV_TOKENS));
        let groups = (0..n).step_by(size).map(|first| {
            let group = first..n.min(first + size);
            let gain = self.gain.map(|i| &sources[i]);
            let bytes = quantize_rows(&sources[0], group.clone(), gain, self.eps, shares_scales);
            let acts = Acts::new(&bytes, k, group.len(), shares_scales);
            let ready = |i: usize| Isa::best().gemv_acts(acts, operands.rows(i).format());
            (first, (0..self.operands.len()).map(ready).collect())
        });
        let groups: Vec<(usize, Vec<GemvActs>)> = groups.collect();
        while let Some(mut out) = parts.next() {
            let range = out.columns();
            let mut first = 0;
            for number in (0..self.operands.len()).step_by(self.combine.n_together()) {
                let n_out = self.operands[number].n_out(ids.len());
                // The part's share of this operand.
                let share = range.start.max(first)..range.end.min(first + n_out);
                if !share.is_empty() {
                    let products = |which: usize| {
                        let number = number + which;
                        let rows = operands.rows(number);
                        let row = |i: usize| rows.row(share.start - first + i, ids);
                        let mut all = vec![0.0f32; n * share.len()];
                        for (first, tokens) in &groups {
                            Isa::best().gemv(&tokens[number], &row, share.len(), &mut |i, x| {
                                (*first..).zip(x).for_each(|(t, x)| all[t * share.len() + i] = *x);
                            });
                        }
                        all
                    };
                    self.write(products, share.len(), share.start - range.start, &mut out);
                }
                first += n_out;
            }
        }
    }
}

impl RowProduct {
    /// Combines `n_rows` products of each token and writes them, `at` elements into the part. `products(which)` gives those with an operand,
    /// token by token.
    fn write(&self, products: impl Fn(usize) -> Vec<f32>, n_rows: usize, at: usize, out: &mut Part) {
        let first = products(0);
        match self.combine {
            Combine::Stack => {
                for (t, x) in first.chunks_exact(n_rows).enumerate() {
                    out.row::<f32>(t)[at..at + n_rows].copy_from_slice(x);
                }
            }
            Combine::Gated(act) => {
                let second = products(1);
                for (t, (gate, up)) in first.chunks_exact(n_rows).zip(second.chunks_exact(n_rows)).enumerate() {
                    Isa::best().gated(act, gate, up, &mut out.row::<f32>(t)[at..at + n_rows]);
                }
            }
        }
    }
}
