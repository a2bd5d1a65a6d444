//! Temperature of attention by position.

use ggml::{Op, Parts, Source};

use crate::weights::Temperature;

/// Queries F32 `[d, n_head, n_tokens]` and their positions I32 `[n_tokens]` -> the queries, each times the factor of its position.
#[derive(Debug)]
pub struct Temper(pub Temperature);

impl Op for Temper {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let [q, positions] = [&sources[0], &sources[1]];
        let (n_head, positions) = (q.ne()[1], positions.row::<i32>(0));
        let Temperature { scale, length } = self.0;
        while let Some(mut out) = parts.next() {
            for row in out.rows() {
                let (token, head) = (row / n_head, row % n_head);
                let steps = (positions[token] as u32 / length) as f32;
                let factor = 1.0 + scale * (1.0 + steps).ln();
                let to = out.row::<f32>(row);
                to.iter_mut().zip(q.elements::<f32>([head, token, 0])).for_each(|(to, x)| *to = x * factor);
            }
        }
    }
}
