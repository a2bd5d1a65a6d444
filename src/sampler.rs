//! Drawing the next token: libllama's samplers in llama.cpp's order.

use std::hash::{BuildHasher, Hasher, RandomState};

use ggml::{SamplerChain, SamplerParams};

use crate::error::{Error, Result};
use crate::tokenizer::Token;

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
        }
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
    /// whole context looks back at.
    pub fn new(options: &Options, n_vocab: usize, n_ctx: usize, eog_tokens: &[Token]) -> Sampler {
        let seed = options.seed.filter(|&s| s != RANDOM_SEED).unwrap_or_else(random_seed);
        let n_ctx = i32::try_from(n_ctx).unwrap_or(i32::MAX);
        let params = SamplerParams {
            banned: if options.ignore_eos { eog_tokens.to_vec() } else { Vec::new() },
            penalty_last_n: if options.repeat_last_n < 0 { n_ctx } else { options.repeat_last_n.min(n_ctx) },
            penalty_repeat: options.repeat_penalty,
            penalty_freq: options.frequency_penalty,
            penalty_present: options.presence_penalty,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            temperature: options.temperature,
            seed,
        };
        let penalties = (params.penalty_repeat, params.penalty_freq, params.penalty_present) != (1.0, 0.0, 0.0);
        let plain_greedy = options.temperature <= 0.0 && params.banned.is_empty() && !penalties;
        Sampler { chain: SamplerChain::new(&params, n_vocab), seed, plain_greedy }
    }

    /// The seed in use.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Draws a token from `logits` `[n_vocab]` and remembers it for penalties.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Token> {
        let token = if self.plain_greedy { argmax(logits) } else { self.chain.sample(logits) };
        let token = token.ok_or_else(|| {
            Error::failed(
                "the model computed no usable logits (NaN or infinity): the file may be damaged; try --check-tensors",
            )
        })?;
        self.accept(token);
        Ok(token)
    }

    /// Remembers a token of the prompt for penalties.
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
        Sampler::new(&options, LOGITS.len(), 64, &[1])
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
