//! The probe: which rows of a batch run ahead. Positions are picked first, then samples, which all have the same positions in the probe.

use ggml::{Op, Parts, Source};

use super::options::{Method, Options};

/// A probe of no more tokens than this has position 0 among them, as in the paper's code.
pub const FIRST_IS_IN: usize = 10;

/// Rows of a probe, of equal-length pieces of `n_seq` samples side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeShape {
    /// Samples in the probe
    pub n_seq: usize,
    /// Tokens of each
    pub n_each: usize,
}

impl ProbeShape {
    /// The probe of `n_seq` samples of `n_each` tokens: shares rounded up, two tokens at least (one, if there is only one).
    pub fn of(options: &Options, n_seq: usize, n_each: usize) -> ProbeShape {
        if options.method == Method::FullBatch {
            return ProbeShape { n_seq, n_each };
        }
        let tokens = (n_each as f64 * options.tokens).ceil() as usize;
        let samples = (n_seq as f64 * options.samples).ceil() as usize;
        ProbeShape { n_seq: samples.clamp(1, n_seq), n_each: tokens.max(2).min(n_each) }
    }

    /// Rows in all.
    pub fn n_rows(&self) -> usize {
        self.n_seq * self.n_each
    }
}

/// Row numbers of a probe at even distances in a batch of `n_seq` samples of `n_each` tokens, sample by sample.
pub fn evenly(probe: ProbeShape, n_seq: usize, n_each: usize) -> Vec<i32> {
    let spread = |n: usize, of: usize| (0..n).map(move |i| (2 * i + 1) * of / (2 * n));
    spread(probe.n_seq, n_seq)
        .flat_map(|b| spread(probe.n_each, n_each).map(move |s| (b * n_each + s) as i32))
        .collect()
}

/// Row numbers of the probe of largest residual importance, ascending, given the squared norm of each row: first the tokens whose norm
/// over all samples is largest are picked, then the samples whose norm over these tokens is. With ten tokens or fewer, position 0 takes
/// the place of the earliest, as in the paper's code.
fn by_residual(probe: ProbeShape, squares: &[f32], n_seq: usize, n_each: usize) -> Vec<i32> {
    let square = |b: usize, s: usize| f64::from(squares[b * n_each + s]);
    let tokens: Vec<f64> = (0..n_each).map(|s| (0..n_seq).map(|b| square(b, s)).sum()).collect();
    let mut picked = largest(&tokens, probe.n_each);
    if probe.n_each <= FIRST_IS_IN {
        picked[0] = 0;
    }
    let samples: Vec<f64> = (0..n_seq).map(|b| picked.iter().map(|&s| square(b, s)).sum()).collect();
    let samples = largest(&samples, probe.n_seq);
    samples.iter().flat_map(|b| picked.iter().map(move |s| (b * n_each + s) as i32)).collect()
}

/// Numbers of the `n` largest values, ascending; the first of equals.
fn largest(values: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(n);
    order.sort_unstable();
    order
}

/// `x` `[n_embd, n_tokens]` -> F32 `[1, n_tokens]`: the squared norm of each row.
#[derive(Debug)]
pub struct SquaredNorms;

impl Op for SquaredNorms {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let range = out.rows();
            for (out, row) in out.elements::<f32>().iter_mut().zip(range) {
                *out = sources[0].row::<f32>(row).iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32;
            }
        }
    }
}

/// Squared norms F32 `[1, n_tokens]` -> I32 `[n_rows]`: the probe's rows.
#[derive(Debug)]
pub struct PickByResidual {
    /// The probe
    pub probe: ProbeShape,
    /// Rows at the beginning that are none of it
    pub first: usize,
    /// Samples of the batch
    pub n_seq: usize,
    /// Tokens of each
    pub n_each: usize,
}

impl Op for PickByResidual {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let n = self.n_seq * self.n_each;
            let squares: Vec<f32> = (self.first..self.first + n).map(|i| sources[0].row::<f32>(i)[0]).collect();
            let rows = by_residual(self.probe, &squares, self.n_seq, self.n_each);
            out.elements::<i32>().iter_mut().zip(rows).for_each(|(o, row)| *o = row + self.first as i32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up() {
        let paper = Options::paper(0.4);
        assert_eq!(ProbeShape::of(&paper, 20, 1024), ProbeShape { n_seq: 1, n_each: 512 });
        assert_eq!(ProbeShape::of(&paper, 1, 3), ProbeShape { n_seq: 1, n_each: 2 });
        let mut options = Options { samples: 0.15, ..paper };
        assert_eq!(ProbeShape::of(&options, 20, 1).n_each, 1);
        assert_eq!(ProbeShape::of(&options, 20, 1024).n_seq, 3);
        options.method = Method::FullBatch;
        assert_eq!(ProbeShape::of(&options, 20, 1024).n_rows(), 20480);
    }

    #[test]
    fn figure_1_picks_the_token_of_the_largest_residual() {
        // Residuals [[4, 2], [3, 0]] of two samples: importance [5, 2].
        let squares = [16.0, 4.0, 9.0, 0.0];
        assert_eq!(by_residual(ProbeShape { n_seq: 1, n_each: 1 }, &squares, 2, 2), [0]);
    }

    #[test]
    fn tokens_then_samples() {
        // Token 2 is the largest over both samples, then token 1; of these, sample 1 has more.
        let mut squares = vec![0.0; 2 * 12];
        squares[2] = 4.0;
        squares[12 + 2] = 9.0;
        squares[12 + 1] = 5.0;
        squares[7] = 1.0;
        assert_eq!(by_residual(ProbeShape { n_seq: 1, n_each: 3 }, &squares, 2, 12), [12, 14, 19]);
        let all: Vec<i32> = (0..11).map(|i| i + 12).collect();
        let picked = by_residual(ProbeShape { n_seq: 1, n_each: 11 }, &squares, 2, 12);
        assert_eq!(picked, all, "eleven tokens: position 0 is not forced in, but ties go to the first");
    }

    #[test]
    fn even_rows() {
        assert_eq!(evenly(ProbeShape { n_seq: 1, n_each: 4 }, 1, 8), [1, 3, 5, 7]);
        assert_eq!(evenly(ProbeShape { n_seq: 2, n_each: 2 }, 2, 4), [1, 3, 5, 7]);
        assert_eq!(evenly(ProbeShape { n_seq: 2, n_each: 3 }, 2, 3), [0, 1, 2, 3, 4, 5]);
    }
}
