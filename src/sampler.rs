//! Drawing the next token: libllama's samplers in llama.cpp's order.

use std::hash::{BuildHasher, Hasher, RandomState};

use ggml::{SamplerChain, SamplerStep};

use crate::error::{Error, Result};
use crate::tokenizer::{Token, Tokenizer};

/// llama.cpp's name for "choose a seed".
const RANDOM_SEED: u32 = u32::MAX;

/// How the next token is drawn. Defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// `None` = random, and the seed drawn is reported.
    pub seed: Option<u32>,
    /// 0.8; at most 0 = greedy
    pub temperature: f32,
    /// 40; 0 = off
    pub top_k: i32,
    /// 0.95; 1 = off
    pub top_p: f32,
    /// 0.05; 0 = off
    pub min_p: f32,
    /// 1.0 = off
    pub repeat_penalty: f32,
    /// 64; 0 = off, -1 = whole context
    pub repeat_last_n: i32,
    /// 0 = off
    pub presence_penalty: f32,
    /// 0 = off
    pub frequency_penalty: f32,
    /// Never draw an end-of-generation token.
    pub ignore_eos: bool,
    /// What is added to logits of tokens; minus infinity bans one
    pub logit_bias: Vec<(Token, f32)>,
    /// Penalties on tokens that go on with a repetition (DRY)
    pub dry: Dry,
    /// -1; standard deviations of logits below the best one, at which they are cut; at most 0 = off
    pub top_n_sigma: f32,
    /// 1; probability of the tokens that are drawn from, those whose surprise is nearest to the entropy; 1 = off
    pub typical_p: f32,
    /// 0; probability that the best tokens are left out (XTC); 0 = off
    pub xtc_probability: f32,
    /// 0.1; how likely those are, but for the last of them; more than 0.5 = off
    pub xtc_threshold: f32,
    /// 0; the temperature is so much lower for the surest and higher for the most open choice; at most 0 = off
    pub dynatemp_range: f32,
    /// 1; the exponent with which it depends on the entropy
    pub dynatemp_exponent: f32,
    /// Mirostat in the place of all other steps but biases and the temperature
    pub mirostat: Mirostat,
    /// 5; mirostat's surprise to aim at, in bits
    pub mirostat_tau: f32,
    /// 0.1; mirostat's learning rate
    pub mirostat_eta: f32,
    /// -1; probability that drawn tokens are to have (adaptive-p), in the place of the plain draw; less than 0 = off
    pub adaptive_target: f32,
    /// 0.9; how far back adaptive-p looks: 1 / (1 - decay) tokens
    pub adaptive_decay: f32,
    /// What is done to logits before the draw, in this order; what is not in the list is left out.
    pub steps: Vec<Step>,
}

/// DRY: a token is penalised by `multiplier * base ^ (length of the repetition - allowed length)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    /// 0 = off
    pub multiplier: f32,
    /// 1.75; at least 1
    pub base: f32,
    /// 2; repetitions of fewer tokens are not penalised
    pub allowed_length: i32,
    /// 64; 0 = off, -1 = whole context
    pub last_n: i32,
    /// Texts that no repetition reaches over, of 40 bytes at most
    pub breakers: Vec<String>,
}

/// Which mirostat, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirostat {
    /// No
    Off,
    /// The paper's, which estimates how many of the best tokens to draw from
    One,
    /// Version 2, which draws from tokens below a surprise
    Two,
}

/// What is done to logits before the draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Repetition, presence, frequency
    Penalties,
    /// DRY
    Dry,
    /// Cut below the best by standard deviations
    TopNSigma,
    /// The K best
    TopK,
    /// Locally typical ones
    TypicalP,
    /// The best that make up a probability
    TopP,
    /// Those of a probability relative to the best
    MinP,
    /// Leave out the best
    Xtc,
    /// Temperature, which may be dynamic
    Temperature,
}

impl Step {
    /// All of them in llama.cpp's order, with llama.cpp's name and letter.
    pub const ALL: [(Step, &'static str, char); 9] = [
        (Step::Penalties, "penalties", 'e'),
        (Step::Dry, "dry", 'd'),
        (Step::TopNSigma, "top_n_sigma", 's'),
        (Step::TopK, "top_k", 'k'),
        (Step::TypicalP, "typ_p", 'y'),
        (Step::TopP, "top_p", 'p'),
        (Step::MinP, "min_p", 'm'),
        (Step::Xtc, "xtc", 'x'),
        (Step::Temperature, "temperature", 't'),
    ];
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: None,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            ignore_eos: false,
            logit_bias: Vec::new(),
            dry: Dry {
                multiplier: 0.0,
                base: 1.75,
                allowed_length: 2,
                last_n: 64,
                breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
            },
            top_n_sigma: -1.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            mirostat: Mirostat::Off,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            adaptive_target: -1.0,
            adaptive_decay: 0.9,
            steps: Step::ALL.map(|s| s.0).to_vec(),
        }
    }
}

impl Options {
    /// The steps of libllama that these options ask for: only those that are on, and one at the end that draws.
    fn steps(&self, seed: u32, n_ctx: i32, eog_tokens: &[Token]) -> Vec<SamplerStep> {
        let mut biases = self.logit_bias.clone();
        if self.ignore_eos {
            biases.extend(eog_tokens.iter().map(|&t| (t, f32::NEG_INFINITY)));
        }
        let mut steps: Vec<SamplerStep> =
            (!biases.is_empty()).then_some(SamplerStep::LogitBias(biases)).into_iter().collect();
        let temperature =
            |range| SamplerStep::Temperature { temperature: self.temperature, range, exponent: self.dynatemp_exponent };
        let (tau, eta) = (self.mirostat_tau, self.mirostat_eta);
        match self.mirostat {
            Mirostat::Off => {}
            Mirostat::One => {
                steps.extend([temperature(0.0), SamplerStep::MirostatV1 { tau, eta, seed }]);
                return steps;
            }
            Mirostat::Two => {
                steps.extend([temperature(0.0), SamplerStep::MirostatV2 { tau, eta, seed }]);
                return steps;
            }
        }
        let last_n = |n: i32| if n < 0 { n_ctx } else { n.min(n_ctx) };
        let step = |step: &Step| {
            let (is_on, with) = match step {
                Step::Penalties => {
                    let (repeat, freq, present) = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty);
                    let last_n = last_n(self.repeat_last_n);
                    let is_on = last_n != 0 && (repeat, freq, present) != (1.0, 0.0, 0.0);
                    (is_on, SamplerStep::Penalties { last_n, repeat, freq, present })
                }
                Step::Dry => {
                    let Dry { multiplier, base, allowed_length, ref breakers, .. } = self.dry;
                    let (last_n, breakers) = (last_n(self.dry.last_n), breakers.clone());
                    let is_on = multiplier != 0.0 && last_n != 0;
                    (is_on, SamplerStep::Dry { multiplier, base, allowed_length, last_n, breakers })
                }
                Step::TopNSigma => (self.top_n_sigma > 0.0, SamplerStep::TopNSigma(self.top_n_sigma)),
                Step::TopK => (self.top_k > 0, SamplerStep::TopK(self.top_k)),
                Step::TypicalP => (self.typical_p < 1.0, SamplerStep::Typical(self.typical_p)),
                Step::TopP => (self.top_p < 1.0, SamplerStep::TopP(self.top_p)),
                Step::MinP => (self.min_p > 0.0, SamplerStep::MinP(self.min_p)),
                Step::Xtc => {
                    let (probability, threshold) = (self.xtc_probability, self.xtc_threshold);
                    let is_on = probability > 0.0 && threshold <= 0.5;
                    (is_on, SamplerStep::Xtc { probability, threshold, seed })
                }
                Step::Temperature => (true, temperature(self.dynatemp_range)),
            };
            is_on.then_some(with)
        };
        steps.extend(self.steps.iter().filter_map(step));
        let is_cold = |s: &SamplerStep| matches!(s, SamplerStep::Temperature { temperature, range, .. } if *temperature <= 0.0 && *range <= 0.0);
        if self.adaptive_target >= 0.0 {
            steps.push(SamplerStep::AdaptiveP { target: self.adaptive_target, decay: self.adaptive_decay, seed });
        } else if steps.iter().any(is_cold) {
            // Only these can make another token the most likely one, or leave that out; what comes behind them changes nothing.
            let counts = |s: &SamplerStep| {
                use SamplerStep::{Dry, LogitBias, Penalties, Typical, Xtc};
                matches!(s, LogitBias(_) | Penalties { .. } | Dry { .. } | Typical(_) | Xtc { .. })
            };
            steps.truncate(steps.iter().rposition(counts).map_or(0, |i| i + 1));
            steps.push(SamplerStep::Greedy);
        } else {
            steps.push(SamplerStep::Dist { seed });
        }
        steps
    }
}

/// Draws tokens from logits.
#[derive(Debug)]
pub struct Sampler {
    chain: SamplerChain,
    seed: u32,
    /// No step before the choice changes the order of logits.
    plain_greedy: bool,
}

impl Sampler {
    /// A sampler for `n_vocab` tokens. `eog_tokens` are the ones that `ignore_eos` bans; `n_ctx` is what a penalty over the
    /// whole context looks back at; the breakers of DRY are texts of the tokenizer's, and without one there are none.
    pub fn new(
        options: &Options,
        n_vocab: usize,
        n_ctx: usize,
        eog_tokens: &[Token],
        tokenizer: Option<&Tokenizer>,
    ) -> Sampler {
        let seed = options.seed.filter(|&s| s != RANDOM_SEED).unwrap_or_else(random_seed);
        let steps = options.steps(seed, i32::try_from(n_ctx).unwrap_or(i32::MAX), eog_tokens);
        let plain_greedy = steps == [SamplerStep::Greedy];
        Sampler { chain: SamplerChain::new(&steps, n_vocab, tokenizer.map(Tokenizer::vocab)), seed, plain_greedy }
    }

    /// The seed in use.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Draws a token from `logits` `[n_vocab]` and remembers it for penalties.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Token> {
        let token = self.draw(logits)?;
        self.accept(token);
        Ok(token)
    }

    /// Draws a token from `logits` `[n_vocab]`.
    pub fn draw(&mut self, logits: &[f32]) -> Result<Token> {
        let token = if self.plain_greedy { argmax(logits) } else { self.chain.sample(logits) };
        token.ok_or_else(|| {
            Error::failed(
                "the model computed no usable logits (NaN or infinity): the file may be damaged; try --check-tensors",
            )
        })
    }

    /// Remembers a token for penalties.
    pub fn accept(&mut self, token: Token) {
        if !self.plain_greedy {
            self.chain.accept(token);
        }
    }
}

/// The first of the largest logits; `None` if there is none, or one is NaN or infinite.
fn argmax(logits: &[f32]) -> Option<Token> {
    if !logits.iter().all(|&l| l < f32::INFINITY) {
        return None;
    }
    let mut best: Option<(usize, f32)> = None;
    for (i, &l) in logits.iter().enumerate() {
        if l > best.map_or(f32::NEG_INFINITY, |b| b.1) {
            best = Some((i, l));
        }
    }
    best.map(|(i, _)| i as Token)
}

/// 32 bits that the operating system's randomness went into; never [`RANDOM_SEED`].
fn random_seed() -> u32 {
    (RandomState::new().build_hasher().finish() as u32) & (RANDOM_SEED >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [0.0, 2.0, 1.9, 1.8, -3.0, 1.7];

    fn sampler(options: Options) -> Sampler {
        Sampler::new(&options, LOGITS.len(), 64, &[1], None)
    }

    #[test]
    fn greedy_is_the_first_largest() {
        let mut s = sampler(Options { temperature: 0.0, ..Default::default() });
        assert_eq!(s.sample(&LOGITS).unwrap(), 1);
        assert_eq!(s.sample(&[0.0, 3.0, 3.0, f32::NEG_INFINITY, 0.0, 0.0]).unwrap(), 1);
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| {
            let mut s = sampler(Options { seed: Some(seed), ..Default::default() });
            (0..40).map(|_| s.sample(&LOGITS).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn eog_tokens_are_banned_and_repetitions_penalised() {
        let greedy = Options { temperature: 0.0, ..Default::default() };
        let mut s = sampler(Options { ignore_eos: true, ..greedy.clone() });
        assert_eq!(s.sample(&LOGITS).unwrap(), 2);
        let mut s = sampler(Options { presence_penalty: 1.0, ..greedy });
        assert_eq!([1, 2, 3, 5], [(); 4].map(|()| s.sample(&LOGITS).unwrap()));
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        for temperature in [0.0, 0.8] {
            let mut s = sampler(Options { seed: Some(1), temperature, ..Default::default() });
            for bad in [f32::NAN, f32::INFINITY] {
                assert!(s.sample(&[1.0, bad, 1.0, 1.0, 1.0, 1.0]).is_err());
            }
            assert!(s.sample(&[f32::NEG_INFINITY; 6]).is_err());
            assert_eq!(s.sample(&[1.0, f32::NEG_INFINITY, 0.0, 0.0, 0.0, 9.0]).map(|t| t != 1).ok(), Some(true));
        }
    }
}
