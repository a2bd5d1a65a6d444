//! Which choice a model takes, and how often that is the right one.

use crate::engine::Likelihood;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// lm-evaluation-harness's: the most likely continuation
    Acc,
    /// lm-evaluation-harness's: the most likely one per character
    AccNorm,
    /// The paper's: the most likely choice
    CsrAccuracy,
    /// The paper's: the most likely one per token
    CsrAccuracyNorm,
}

impl Metric {
    /// Name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Acc => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::CsrAccuracy => "csr_accuracy",
            Metric::CsrAccuracyNorm => "csr_accuracy_norm",
        }
    }
}

/// How likely the choices of a question are, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The likelihoods, of no more choices than the question has
    pub likelihoods: Vec<Likelihood>,
    /// Tokens of each choice
    pub n_tokens: Vec<usize>,
}

impl Answer {
    /// Whether the right choice is taken: the first of equals.
    pub fn is_right(&self, metric: Metric, lengths: &[usize], gold: usize) -> bool {
        let of_choice = |i: usize| {
            let sum = self.likelihoods[i].sum;
            match metric {
                Metric::Acc | Metric::CsrAccuracy => sum,
                Metric::AccNorm => sum / lengths[i] as f64,
                Metric::CsrAccuracyNorm => sum / self.n_tokens[i] as f64,
            }
        };
        let scores: Vec<f64> = (0..self.likelihoods.len()).map(of_choice).collect();
        first_largest(&scores) == Some(gold)
    }
}

/// The first of the largest numbers as numpy's `argmax` finds it: what is no number is larger than any.
fn first_largest(scores: &[f64]) -> Option<usize> {
    if let Some(i) = scores.iter().position(|s| s.is_nan()) {
        return Some(i);
    }
    (0..scores.len()).reduce(|best, i| if scores[i] > scores[best] { i } else { best })
}

/// A mean, and its standard error if there are two values or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    pub error: Option<f64>,
}

/// The mean of some values, and its error by the sample's standard deviation.
pub fn estimate(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    let error = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
    Estimate { mean, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_by_each_metric() {
        let likelihood = |sum| Likelihood { sum, is_greedy: false };
        let answer = Answer { likelihoods: [-4.0, -6.0, -9.0].map(likelihood).to_vec(), n_tokens: vec![1, 2, 4] };
        let lengths = [2, 4, 9];
        let taken = |metric| (0..3).find(|&gold| answer.is_right(metric, &lengths, gold)).unwrap();
        let all = [Metric::Acc, Metric::AccNorm, Metric::CsrAccuracy, Metric::CsrAccuracyNorm];
        assert_eq!(all.map(taken), [0, 2, 0, 2]);
        assert_eq!(first_largest(&[-1.0, -1.0]), Some(0));
        assert_eq!(first_largest(&[f64::NEG_INFINITY; 2]), Some(0));
        // A choice without characters: 0 / 0.
        assert_eq!(first_largest(&[-1.0, f64::NAN]), Some(1));
    }

    #[test]
    fn error_of_a_mean() {
        let e = estimate(&[1.0, 0.0, 1.0, 1.0]);
        assert!((e.mean - 0.75).abs() < 1e-12 && (e.error.unwrap() - 0.25).abs() < 1e-12, "{e:?}");
        assert_eq!(estimate(&[1.0]).error, None);
    }
}
