//! Rows of their own among those of a batch.

use ggml::{Op, Parts, Source};

/// Rows F32 `[k, m]`, their numbers I32 `[m]`, and perhaps all rows F32 `[k, n]` -> F32 `[k, n]`: all rows, zeros if there are none, with
/// these in their places.
#[derive(Debug)]
pub struct PutRows;

impl Op for PutRows {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let numbers = sources[1].row::<i32>(0);
        while let Some(mut out) = parts.next() {
            let range = out.rows();
            let k = sources[0].ne()[0];
            for (out, i) in out.elements::<f32>().chunks_exact_mut(k).zip(range) {
                let own = numbers.iter().position(|&number| number as usize == i);
                match (own, sources.get(2)) {
                    (Some(own), _) => out.copy_from_slice(sources[0].row::<f32>(own)),
                    (None, Some(all)) => out.copy_from_slice(all.row::<f32>(i)),
                    (None, None) => out.fill(0.0),
                }
            }
        }
    }
}
