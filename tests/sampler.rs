//! Samplers: what they draw is distributed as plain code says that it should be.

mod common;

use common::{tokenizer, tokens_of};
use pp_run::sampler::{Dry, Mirostat, Options, Sampler, Step};
use pp_run::tokenizer::Token;

const LOGITS: [f32; 10] = [1.2, 3.1, 0.4, 2.9, -1.0, 2.2, 0.9, 3.0, -4.0, 1.9];

/// Answers of each case, and draws of each answer.
const ANSWERS: u32 = 40;
const DRAWS: usize = 500;

/// All steps are off, and the temperature is 1.
fn plain() -> Options {
    Options { seed: Some(11), temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Default::default() }
}

fn logits() -> Vec<f64> {
    LOGITS.iter().map(|&l| f64::from(l)).collect()
}

/// Probabilities of logits; minus infinity has none.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|l| (l - best).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

/// The probabilities of the tokens that `keep` is true of, and no others.
fn only(p: &[f64], keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let kept: Vec<f64> = p.iter().enumerate().map(|(i, &p)| if keep(i) { p } else { 0.0 }).collect();
    let sum: f64 = kept.iter().sum();
    kept.iter().map(|p| p / sum).collect()
}

/// Tokens from the most likely to the least.
fn sorted(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    order
}

fn entropy(p: &[f64]) -> f64 {
    p.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum()
}

/// Draws from the same logits again and again. `expected` is told what an answer has so far and says how the next token is distributed: each
/// token comes as often as the sum of its probabilities says, within five standard deviations.
#[track_caller]
fn check(options: &Options, mut expected: impl FnMut(&[usize]) -> Vec<f64>) {
    let (mut counts, mut sum, mut variance) = ([0.0; LOGITS.len()], [0.0; LOGITS.len()], [0.0; LOGITS.len()]);
    for seed in 0..ANSWERS {
        let options = Options { seed: Some(seed), ..options.clone() };
        let mut sampler = Sampler::new(&options, LOGITS.len(), 64, &[], None);
        let mut drawn = Vec::new();
        for _ in 0..DRAWS {
            let p = expected(&drawn);
            for (i, p) in p.iter().enumerate() {
                sum[i] += p;
                variance[i] += p * (1.0 - p);
            }
            let token = sampler.sample(&LOGITS).unwrap() as usize;
            assert!(p[token] > 0.0, "{token} was drawn, of {p:?}");
            counts[token] += 1.0;
            drawn.push(token);
        }
    }
    for i in 0..LOGITS.len() {
        let n: f64 = counts[i];
        // What is certain is so but for rounding.
        assert!((n - sum[i]).abs() <= 5.0 * f64::sqrt(variance[i]) + 1.0, "token {i}: {n} of {}", sum[i]);
    }
}

#[test]
fn cuts_leave_the_tokens_that_they_should() {
    let p = softmax(&logits());
    check(&plain(), |_| p.clone());
    check(&Options { top_k: 3, ..plain() }, |_| only(&p, |i| sorted(&p)[..3].contains(&i)));
    check(&Options { min_p: 0.3, ..plain() }, |_| only(&p, |i| p[i] >= 0.3 * p[1]));

    let mut sum = 0.0;
    let n = 1 + sorted(&p).iter().position(|&i| (sum += p[i], sum >= 0.7).1).unwrap();
    check(&Options { top_p: 0.7, ..plain() }, |_| only(&p, |i| sorted(&p)[..n].contains(&i)));

    let mean = logits().iter().sum::<f64>() / LOGITS.len() as f64;
    let deviation = (logits().iter().map(|l| (l - mean).powi(2)).sum::<f64>() / LOGITS.len() as f64).sqrt();
    for n in [0.2, 0.6, 2.0] {
        let least = 3.1 - n * deviation;
        check(&Options { top_n_sigma: n as f32, ..plain() }, |_| only(&p, |i| logits()[i] >= least));
    }

    // The tokens whose surprise is nearest to the entropy come first.
    for share in [0.2, 0.6, 0.9] {
        let distance = |i: usize| (-p[i].ln() - entropy(&p)).abs();
        let mut order = sorted(&p);
        order.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        let mut sum = 0.0;
        let n = 1 + order.iter().position(|&i| (sum += p[i], sum > share).1).unwrap();
        check(&Options { typical_p: share as f32, ..plain() }, |_| only(&p, |i| order[..n].contains(&i)));
    }
}

#[test]
fn xtc_leaves_out_the_best_but_the_last_of_them() {
    let p = softmax(&logits());
    // Of probability 0.1 and more are 1, 7, 3 and 5: the last of them stays.
    let without = only(&p, |i| ![1, 7, 3].contains(&i));
    assert!(p[5] > 0.1 && p[9] < 0.1);
    for share in [0.4, 1.0] {
        let options = Options { xtc_probability: share as f32, xtc_threshold: 0.1, ..plain() };
        check(&options, |_| p.iter().zip(&without).map(|(p, w)| (1.0 - share) * p + share * w).collect());
        check(&Options { xtc_threshold: 0.6, ..options }, |_| p.clone());
    }
    let cold = Options { xtc_probability: 1.0, temperature: 0.0, ..plain() };
    check(&cold, |_| only(&p, |i| i == 5));
}

#[test]
fn the_temperature_depends_on_the_entropy() {
    let at = |t: f64| softmax(&logits().iter().map(|l| l / t).collect::<Vec<_>>());
    check(&Options { temperature: 1.7, ..plain() }, |_| at(1.7));
    for (range, exponent) in [(0.5, 1.0), (0.5, 3.0), (3.0, 0.5)] {
        let share = entropy(&at(1.0)) / (LOGITS.len() as f64).ln();
        let (low, high) = (f64::max(0.8 - range, 0.0), 0.8 + range);
        let temperature = low + (high - low) * share.powf(exponent);
        let options =
            Options { temperature: 0.8, dynatemp_range: range as f32, dynatemp_exponent: exponent as f32, ..plain() };
        check(&options, |_| at(temperature));
    }
}

#[test]
fn biases_are_added() {
    let biased = |ban: f64| {
        let mut l = logits();
        (l[2], l[3], l[7]) = (l[2] + 2.0, l[3] - 1.5, l[7] + ban);
        softmax(&l)
    };
    for ban in [-0.25, f64::NEG_INFINITY] {
        let logit_bias = vec![(2, 2.0), (3, -1.5), (7, ban as f32)];
        check(&Options { logit_bias: logit_bias.clone(), ..plain() }, |_| biased(ban));
        check(&Options { logit_bias, temperature: 0.0, ..plain() }, |_| only(&biased(ban), |i| i == 1));
    }
    let all: Vec<_> = (0..LOGITS.len() as Token).map(|t| (t, f32::NEG_INFINITY)).collect();
    for temperature in [0.0, 1.0] {
        let options = Options { logit_bias: all.clone(), temperature, ..plain() };
        assert!(Sampler::new(&options, LOGITS.len(), 64, &[], None).sample(&LOGITS).is_err());
    }
}

#[test]
fn penalties_and_their_window() {
    let options =
        Options { repeat_penalty: 1.3, frequency_penalty: 0.1, presence_penalty: 0.2, repeat_last_n: 5, ..plain() };
    check(&options, |drawn| {
        let mut l = logits();
        let last = &drawn[drawn.len().saturating_sub(5)..];
        for (i, l) in l.iter_mut().enumerate() {
            let n = last.iter().filter(|&&d| d == i).count() as f64;
            if n > 0.0 {
                *l = if *l <= 0.0 { *l * 1.3 } else { *l / 1.3 } - 0.1 * n - 0.2;
            }
        }
        softmax(&l)
    });
}

/// How many of the last tokens came before with `next` behind them.
fn repeated(last: &[usize], next: usize) -> usize {
    let ends = (0..last.len().saturating_sub(1)).filter(|&at| last[at + 1] == next);
    let length = |at: usize| last[..=at].iter().rev().zip(last.iter().rev()).take_while(|(a, b)| a == b).count();
    ends.map(length).max().unwrap_or(0)
}

#[test]
fn dry_penalises_what_goes_on_with_a_repetition() {
    for (allowed, window) in [(2, 30), (1, 12), (3, 64)] {
        let dry = Dry {
            multiplier: 0.7,
            base: 1.5,
            allowed_length: allowed as i32,
            last_n: if window == 64 { -1 } else { window as i32 },
            ..Options::default().dry
        };
        let mut n_penalties = 0;
        check(&Options { dry, ..plain() }, |drawn| {
            let mut l = logits();
            let last = &drawn[drawn.len().saturating_sub(window)..];
            for (i, l) in l.iter_mut().enumerate().filter(|_| last.len() > allowed) {
                let n = repeated(last, i);
                if n >= allowed {
                    *l -= 0.7 * 1.5f64.powi((n - allowed) as i32);
                    n_penalties += 1;
                }
            }
            softmax(&l)
        });
        assert!(n_penalties > 1000, "{n_penalties}");
    }
}

#[test]
fn no_repetition_of_dry_reaches_over_a_breaker() {
    let (_, tokenizer) = tokenizer();
    let text = tokens_of(&tokenizer, "the old cat sat\nthe old cat");
    let [sat] = tokens_of(&tokenizer, " sat")[..] else { panic!("one token") };
    let mut logits = vec![0.0; tokenizer.n_vocab()];
    (logits[sat as usize], logits[7]) = (3.0, 2.0);
    for (breakers, is_penalised) in [(&["\n"][..], true), (&[" cat"], false), (&["ca"], false), (&[], true)] {
        let breakers = breakers.iter().map(|&b| b.to_owned()).collect();
        let dry = Dry { multiplier: 5.0, breakers, ..Options::default().dry };
        let options = Options { dry, temperature: 0.0, ..plain() };
        let mut sampler = Sampler::new(&options, logits.len(), 64, &[], Some(&tokenizer));
        text.iter().for_each(|&t| sampler.accept(t));
        assert_eq!(sampler.sample(&logits).unwrap() == 7, is_penalised, "{options:?}");
    }
}

#[test]
fn mirostat_keeps_its_surprise() {
    // No token has the surprise of the last one: the state grows for ever.
    for (tau, temperature) in [(1.5, 1.0), (2.2, 1.4), (5.0, 1.0)] {
        let eta = 0.1;
        let p = softmax(&logits().iter().map(|l| l / temperature).collect::<Vec<_>>());
        let order = sorted(&p);
        let options = |mirostat| Options {
            mirostat,
            mirostat_tau: tau as f32,
            mirostat_eta: eta as f32,
            temperature: temperature as f32,
            // Other steps are left out.
            top_k: 1,
            ..plain()
        };
        // Both draw from the best tokens, so many by their state, which learns from the surprise of what was drawn.
        let mirostat = |mirostat: Mirostat, count: &dyn Fn(f64) -> usize| {
            let (mut mu, mut last) = (0.0, Vec::<f64>::new());
            check(&options(mirostat), |drawn| {
                mu = match drawn.last() {
                    Some(&d) => mu - eta * (-f64::log2(last[d]) - tau),
                    None => 2.0 * tau,
                };
                last = only(&p, |i| order[..count(mu)].contains(&i));
                last.clone()
            });
        };
        let step = |i: usize| {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            (t * (p[order[i]] / p[order[i + 1]]).ln(), t * t)
        };
        let (tb, tt) = (0..LOGITS.len() - 1).map(step).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        let s = tb / tt;
        let n = LOGITS.len() as f64;
        // The first version's number of tokens is out of the range of libllama's integers then.
        if tau < 5.0 {
            mirostat(Mirostat::One, &|mu| {
                let k = ((s - 1.0) * mu.exp2() / (1.0 - n.powf(1.0 - s))).powf(1.0 / s);
                (k as usize).clamp(1, LOGITS.len())
            });
        }
        mirostat(Mirostat::Two, &|mu| order.iter().take_while(|&&i| -p[i].log2() <= mu).count().max(1));
    }
}

#[test]
fn adaptive_p_draws_near_a_probability() {
    let p = softmax(&logits());
    for target in [0.05, 0.3, 0.9] {
        let options = Options { adaptive_target: target as f32, adaptive_decay: 0.8, ..plain() };
        let (mut sum, mut weight) = (0.0, 0.0);
        check(&options, |drawn| {
            (sum, weight) = match drawn.last() {
                Some(&d) => (p[d] + 0.8 * sum, 1.0 + 0.8 * weight),
                None => (0.0, 0.0),
            };
            let aim = if weight == 0.0 { target } else { (2.0 * target - sum / weight).clamp(0.0, 1.0) };
            let far = |p: &f64| (p - aim).abs() / 0.3;
            softmax(&p.iter().map(|p| 5.0 - 10.0 * far(p).powi(2) / (1.0 + far(p))).collect::<Vec<_>>())
        });
    }
}

#[test]
fn steps_have_an_order() {
    let hot = softmax(&logits().iter().map(|l| l / 3.0).collect::<Vec<_>>());
    let cool = softmax(&logits());
    let options = |steps: &[Step]| Options { steps: steps.to_vec(), temperature: 3.0, min_p: 0.4, top_k: 2, ..plain() };
    check(&options(&[Step::Temperature, Step::MinP]), |_| only(&hot, |i| hot[i] >= 0.4 * hot[1]));
    check(&options(&[Step::MinP, Step::Temperature]), |_| only(&hot, |i| cool[i] >= 0.4 * cool[1]));
    check(&options(&[]), |_| cool.clone());
    check(&options(&[Step::TopK]), |_| only(&cool, |i| [1, 7].contains(&i)));
    // What comes before the cut counts, even where the most likely token is drawn.
    let banned = Options { presence_penalty: 1.0, temperature: 0.0, top_k: 2, ..plain() };
    let draw = |options: &Options| {
        let mut s = Sampler::new(options, LOGITS.len(), 64, &[], None);
        [(); 4].map(|()| s.sample(&LOGITS).unwrap())
    };
    assert_eq!(
        draw(&Options { steps: vec![Step::TopK, Step::Penalties, Step::Temperature], ..banned.clone() }),
        [1, 7, 1, 1]
    );
    assert_eq!(draw(&Options { steps: vec![Step::Penalties, Step::TopK, Step::Temperature], ..banned }), [1, 7, 3, 5]);
}

/// Logits that are far apart, or cut off, end no step in numbers that are none.
#[test]
fn no_logits_are_too_far_apart() {
    let far: Vec<f32> = (0..200).map(|i| if i % 3 == 0 { f32::NEG_INFINITY } else { -50.0 * (i as f32) }).collect();
    let every = Options { typical_p: 0.5, xtc_probability: 0.5, top_n_sigma: 1.0, dynatemp_range: 0.5, ..plain() };
    let mirostat = |mirostat| Options { mirostat, ..plain() };
    for options in
        [every.clone(), Options { adaptive_target: 0.5, ..every }, mirostat(Mirostat::One), mirostat(Mirostat::Two)]
    {
        let mut sampler = Sampler::new(&options, far.len(), 64, &[], None);
        for _ in 0..200 {
            assert_eq!(sampler.sample(&far).unwrap(), 1);
        }
    }
    for bad in [Options { repeat_penalty: 1e-38, ..plain() }, Options { temperature: 1e-38, ..plain() }] {
        let mut sampler = Sampler::new(&bad, LOGITS.len(), 64, &[], None);
        // Whatever comes of it, it is no crash.
        (0..20).for_each(|_| drop(sampler.sample(&LOGITS)));
    }
}
