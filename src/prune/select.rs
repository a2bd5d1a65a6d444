//! Which units are kept: those of the highest scores, exactly as many as planned.

use ggml::{Op, Parts, Source};

/// Numbers of the `n` highest scores, ascending. Of equal scores the later is kept, as a stable sort has it.
pub fn highest(scores: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let least = scores.len() - n;
    if (1..scores.len()).contains(&least) {
        order.select_nth_unstable_by(least, |&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    }
    let mut kept = order.split_off(least);
    kept.sort_unstable();
    kept
}

/// Scores F32 `[1, n_units]` -> I32 `[n_kept]`: the kept units, ascending.
#[derive(Debug)]
pub struct Select;

impl Op for Select {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let scores: Vec<f32> = (0..sources[0].ne()[1]).map(|i| sources[0].row::<f32>(i)[0]).collect();
            let out = out.elements::<i32>();
            let kept = highest(&scores, out.len());
            out.iter_mut().zip(kept).for_each(|(o, k)| *o = k as i32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_n_in_order() {
        assert_eq!(highest(&[3.0, 1.0, 2.0, 5.0], 2), [0, 3]);
        assert_eq!(highest(&[1.0, 1.0, 1.0], 2), [1, 2]);
        assert_eq!(highest(&[1.0, 2.0], 2), [0, 1]);
        assert_eq!(highest(&[1.0, 2.0], 0), [0; 0]);
        assert_eq!(highest(&[0.0; 4], 1), [3]);
        assert_eq!(highest(&[f32::NAN; 4], 3), [1, 2, 3]);
        assert_eq!(highest(&[f32::NAN, 1.0, f32::NEG_INFINITY], 2), [0, 1]);
    }
}
