//! Two models, or two readings of a text, token by token: llama-perplexity's table of them.

/// What two models make of one token.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    /// Negative log-likelihood
    pub nll: f64,
    /// The same by the base
    pub nll_base: f64,
    /// KL divergence from the base, in nats
    pub kl: f64,
    /// Both have the same most likely token.
    pub same_top: bool,
}

impl Compared {
    /// How much likelier the token is than by the base.
    fn p_diff(&self) -> f64 {
        (-self.nll).exp() - (-self.nll_base).exp()
    }
}

/// A mean and its standard error, of numbers and of their squares.
fn mean(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    values.for_each(|x| (n, sum, squares) = (n + 1.0, sum + x, squares + x * x));
    let mean = sum / n;
    let variance = squares / n - mean * mean;
    (mean, if variance > 0.0 && n > 10.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 })
}

/// The value below which a share of some sorted values is, between two of them if need be.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (i, rest) = (at as usize, at.fract());
    (1.0 - rest) * sorted[i] + rest * sorted[(i + 1).min(sorted.len() - 1)]
}

/// Mean KL divergence.
pub fn mean_kl(tokens: &[Compared]) -> f64 {
    mean(tokens.iter().map(|t| t.kl)).0
}

/// The perplexity as a multiple of the base's.
pub fn perplexity_ratio(tokens: &[Compared]) -> f64 {
    mean(tokens.iter().map(|t| t.nll - t.nll_base)).0.exp()
}

/// The table that llama-perplexity prints with --kl-divergence, line for line, of at least one token.
pub fn table(tokens: &[Compared]) -> String {
    let n = tokens.len() as f64;
    let sorted = |of: &dyn Fn(&Compared) -> f64| {
        let mut values: Vec<f64> = tokens.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (ln, ln_error) = mean(tokens.iter().map(|t| t.nll));
    let (ln_base, ln_base_error) = mean(tokens.iter().map(|t| t.nll_base));
    let covariance = match n < 10.0 {
        true => 0.0,
        false => (tokens.iter().map(|t| t.nll * t.nll_base).sum::<f64>() / n - ln * ln_base) / (n - 1.0),
    };
    let (ppl, ppl_base) = (ln.exp(), ln_base.exp());
    let (ppl_error, ppl_base_error) = (ppl * ln_error, ppl_base * ln_base_error);
    let of_difference = |a: f64, b: f64, covariance: f64| (a * a + b * b - 2.0 * covariance).max(0.0).sqrt();
    let ln_ratio_error = of_difference(ln_error, ln_base_error, covariance);
    let ratio = (ln - ln_base).exp();
    let difference_error = of_difference(ppl_error, ppl_base_error, ppl * ppl_base * covariance);
    let mut out = String::from("====== Perplexity statistics ======\n");
    let mut line =
        |name: &str, (value, error): (f64, f64)| out.push_str(&format!("{name}: {value:10.6} ± {error:10.6}\n"));
    line("Mean PPL(Q)                   ", (ppl, ppl_error));
    line("Mean PPL(base)                ", (ppl_base, ppl_base_error));
    let correlation = 100.0 * covariance / (ln_error * ln_base_error);
    out.push_str(&format!("Cor(ln(PPL(Q)), ln(PPL(base))): {correlation:6.2}%\n"));
    let mut line =
        |name: &str, (value, error): (f64, f64)| out.push_str(&format!("{name}: {value:10.6} ± {error:10.6}\n"));
    line("Mean ln(PPL(Q)/PPL(base))     ", (ln - ln_base, ln_ratio_error));
    line("Mean PPL(Q)/PPL(base)         ", (ratio, ratio * ln_ratio_error));
    line("Mean PPL(Q)-PPL(base)         ", (ppl - ppl_base, difference_error));

    let kl = sorted(&|t| t.kl);
    let (kl_mean, kl_error) = mean(kl.iter().copied());
    out.push_str(&format!("\n====== KL divergence statistics ======\nMean    KLD: {kl_mean:10.6} ± {kl_error:10.6}\n"));
    for (name, share) in [
        ("Maximum", 1.0),
        ("99.9%  ", 0.999),
        ("99.0%  ", 0.99),
        ("95.0%  ", 0.95),
        ("90.0%  ", 0.9),
        ("Median ", 0.5),
        ("10.0%  ", 0.1),
        (" 5.0%  ", 0.05),
        (" 1.0%  ", 0.01),
        (" 0.1%  ", 0.001),
        ("Minimum", 0.0),
    ] {
        out.push_str(&format!("{name} KLD: {:10.6}\n", percentile(&kl, share)));
    }

    let p_diff = sorted(&Compared::p_diff);
    let (p_mean, p_error) = mean(p_diff.iter().copied());
    out.push_str(&format!(
        "\n====== Token probability statistics ======\nMean    Δp: {:6.3} ± {:5.3} %\n",
        100.0 * p_mean,
        100.0 * p_error
    ));
    for (name, share) in [
        ("Maximum", 1.0),
        ("99.9%  ", 0.999),
        ("99.0%  ", 0.99),
        ("95.0%  ", 0.95),
        ("90.0%  ", 0.9),
        ("75.0%  ", 0.75),
        ("Median ", 0.5),
        ("25.0%  ", 0.25),
        ("10.0%  ", 0.1),
        (" 5.0%  ", 0.05),
        (" 1.0%  ", 0.01),
        (" 0.1%  ", 0.001),
        ("Minimum", 0.0),
    ] {
        out.push_str(&format!("{name} Δp: {:6.3}%\n", 100.0 * percentile(&p_diff, share)));
    }
    let (square, square_error) = mean(p_diff.iter().map(|p| p * p));
    let rms = square.sqrt();
    let rms_error = if rms > 0.0 { 0.5 / rms * square_error } else { 0.0 };
    out.push_str(&format!("RMS Δp    : {:6.3} ± {:5.3} %\n", 100.0 * rms, 100.0 * rms_error));
    let same = tokens.iter().filter(|t| t.same_top).count() as f64 / n;
    let same_error = (same * (1.0 - same) / (n - 1.0).max(1.0)).sqrt();
    out.push_str(&format!("Same top p: {:6.3} ± {:5.3} %\n", 100.0 * same, 100.0 * same_error));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_llama_perplexitys() {
        let token = |i: usize| Compared {
            nll: 1.0 + i as f64 / 10.0,
            nll_base: 1.0 + i as f64 / 11.0,
            kl: i as f64 / 100.0,
            same_top: !i.is_multiple_of(4),
        };
        let table = table(&(0..101).map(token).collect::<Vec<_>>());
        // By numpy, with llama-perplexity's formulas.
        for line in [
            "Mean PPL(Q)                   : 403.428793 ± 117.618694",
            "Cor(ln(PPL(Q)), ln(PPL(base))): 100.00%",
            "Mean ln(PPL(Q)/PPL(base))     :   0.454545 ±   0.026504",
            "Mean    KLD:   0.500000 ±   0.029155",
            "Maximum KLD:   1.000000",
            "99.9%   KLD:   0.999000",
            "Median  KLD:   0.500000",
            " 0.1%   KLD:   0.001000",
            "Mean    Δp: -0.364 ± 0.043 %",
            "25.0%   Δp: -0.648%",
            "Minimum Δp: -1.288%",
            "RMS Δp    :  0.565 ± 0.046 %",
            "Same top p: 74.257 ± 4.372 %",
        ] {
            assert!(table.lines().any(|l| l == line), "{line}\n{table}");
        }
    }
}
