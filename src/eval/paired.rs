//! Two runs on the same questions: how much they differ, and whether that could be chance.

use statrs::distribution::{Binomial, DiscreteCDF};

use super::metrics::{Estimate, estimate};

/// What two runs on the same questions differ in.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    /// Questions
    pub n: usize,
    /// Means of both
    pub means: [f64; 2],
    /// The second less the first, question by question
    pub difference: Estimate,
    /// Questions that only the first has right, and only the second
    pub only: [usize; 2],
    /// McNemar's exact test: how likely two equally good models differ so much or more
    pub p: f64,
}

impl Paired {
    /// Of two runs' values, 0 or 1 for each question.
    pub fn of(first: &[f64], second: &[f64]) -> Paired {
        let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
        let count = |wanted: fn(f64) -> bool| differences.iter().filter(|d| wanted(**d)).count();
        let only = [count(|d| d < 0.0), count(|d| d > 0.0)];
        Paired {
            n: differences.len(),
            means: [estimate(first).mean, estimate(second).mean],
            difference: estimate(&differences),
            only,
            p: mcnemar(only),
        }
    }
}

/// The two-sided exact test: under the hypothesis each question on which the two differ is a coin's throw.
fn mcnemar([a, b]: [usize; 2]) -> f64 {
    let coin = Binomial::new(0.5, (a + b) as u64).expect("a probability");
    (2.0 * coin.cdf(a.min(b) as u64)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemars_test() {
        // By scipy.stats.binomtest(k, n).pvalue.
        for (only, want) in [([0, 0], 1.0), ([5, 5], 1.0), ([1, 9], 0.021484375), ([12, 30], 0.007915897334896727)] {
            assert!((mcnemar(only) - want).abs() < 1e-9, "{only:?}: {}", mcnemar(only));
        }
        let p = Paired::of(&[1.0, 0.0, 1.0, 0.0], &[1.0, 1.0, 1.0, 0.0]);
        assert_eq!((p.n, p.only, p.means), (4, [0, 1], [0.5, 0.75]));
        assert_eq!(p.difference, estimate(&[0.0, 1.0, 0.0, 0.0]));
    }
}
