//! How far apart two models are, or two readings of one text, by their logits.

/// KL divergence of `other` from `base`, and whether both have the same most likely token.
fn compare(base: &[f32], other: &[f32]) -> (f64, bool) {
    let best = |logits: &[f32]| {
        let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        let best = (0..logits.len()).fold(0, better);
        (best, logits[best])
    };
    let ((top_base, max_base), (top_other, max_other)) = (best(base), best(other));
    let sum_other: f64 = other.iter().map(|l| f64::from((l - max_other).exp())).sum();
    let (mut sum_base, mut weighted) = (0.0f64, 0.0f64);
    for (&b, &o) in base.iter().zip(other) {
        let e = f64::from((b - max_base).exp());
        sum_base += e;
        weighted += e * f64::from((b - max_base) - (o - max_other));
    }
    (weighted / sum_base - sum_base.ln() + sum_other.ln(), top_base == top_other)
}

/// For rows of logits `[n_vocab]`, on `n_threads` threads: the KL divergence of `other` from `base` in nats, and whether both have the same
/// most likely token.
pub fn divergences(base: &[f32], other: &[f32], n_vocab: usize, n_threads: usize) -> Vec<(f64, bool)> {
    let share = (base.len() / n_vocab).div_ceil(n_threads).max(1) * n_vocab;
    let part = |base: &[f32], other: &[f32]| -> Vec<(f64, bool)> {
        base.chunks_exact(n_vocab).zip(other.chunks_exact(n_vocab)).map(|(b, o)| compare(b, o)).collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            base.chunks(share).zip(other.chunks(share)).map(|(b, o)| scope.spawn(move || part(b, o))).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_two_coins() {
        // 1/2, 1/2 against 1/4, 3/4, at any offset.
        let (kl, same) = compare(&[3.0, 3.0], &[1.0, 1.0 + 3.0f32.ln()]);
        assert!((kl - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-6 && !same, "{kl}");
        let (kl, same) = compare(&[0.5, 2.0], &[7.5, 9.0]);
        assert!(kl.abs() < 1e-6 && same, "{kl}");
    }
}
