//! Products of a few tokens with columns that were reduced before.

use ggml::{Division, Op, Parts, Source};
use kernels::Isa;

use super::gemv::share;
use crate::prune::OwnColumns;

/// Kept units' states F32 `[n_kept * width, n_tokens]` -> F32 `[n_out, n_tokens]`: products with the columns of these units that were
/// reduced in advance.
#[derive(Debug)]
pub struct ColumnProduct {
    /// The columns
    pub columns: OwnColumns,
}

impl Op for ColumnProduct {
    fn division(&self, ne: [usize; 4]) -> Division {
        let layout = &self.columns.layout;
        let share = share(layout.row_bytes(), ne[0]);
        Division { rows: ne[1], columns: share.next_multiple_of(layout.tile_rows()) }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let isa = Isa::best();
        let layout = &self.columns.layout;
        let n = sources[0].ne()[1];
        let acts: Vec<_> = (0..n).map(|t| isa.column_acts(layout, sources[0].row::<f32>(t))).collect();
        while let Some(mut out) = parts.next() {
            let first = out.columns().start;
            for (t, acts) in acts.iter().enumerate() {
                isa.gemv_columns(layout, self.columns.bytes(), acts, first, out.row::<f32>(t));
            }
        }
    }
}
