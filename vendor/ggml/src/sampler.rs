//! libllama's samplers, one after the other.

use std::ffi::CString;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::llama::Vocab;

/// A step of a chain, with libllama's settings. The last one of a chain draws: [`SamplerStep::Greedy`] and those with a seed but
/// [`SamplerStep::Xtc`].
#[derive(Debug, Clone, PartialEq)]
pub enum SamplerStep {
    /// What is added to logits of tokens; minus infinity bans one.
    LogitBias(Vec<(i32, f32)>),
    /// Penalties on the `last_n` tokens that were accepted last
    Penalties {
        last_n: i32,
        repeat: f32,
        freq: f32,
        present: f32,
    },
    /// Penalties on tokens that would go on with a repetition among the `last_n` tokens that were accepted last. A breaker is a text of 40
    /// bytes at most, without zero bytes, over which no repetition reaches.
    Dry {
        multiplier: f32,
        base: f32,
        allowed_length: i32,
        last_n: i32,
        breakers: Vec<String>,
    },
    /// Cuts logits that are so many standard deviations below the best.
    TopNSigma(f32),
    TopK(i32),
    Typical(f32),
    TopP(f32),
    MinP(f32),
    /// With this probability cuts all tokens that are as likely as the threshold, but for the least likely of them.
    Xtc {
        probability: f32,
        threshold: f32,
        seed: u32,
    },
    /// The temperature; with a range around it, one that depends on the entropy.
    Temperature {
        temperature: f32,
        range: f32,
        exponent: f32,
    },
    Greedy,
    Dist {
        seed: u32,
    },
    MirostatV1 {
        tau: f32,
        eta: f32,
        seed: u32,
    },
    MirostatV2 {
        tau: f32,
        eta: f32,
        seed: u32,
    },
    AdaptiveP {
        target: f32,
        decay: f32,
        seed: u32,
    },
}

/// One sampler of libllama.
#[derive(Debug)]
struct Sampler {
    ptr: NonNull<sys::llama_sampler>,
    /// It takes the logarithm of each candidate's probability, or draws one: there must be no candidate of probability 0.
    wants_possible: bool,
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: this owner made the sampler, gave it to no chain, and frees it once.
        unsafe { sys::llama_sampler_free(self.ptr.as_ptr()) }
    }
}

/// Tokens that mirostat estimates its distribution by.
const MIROSTAT_M: i32 = 100;

impl Sampler {
    fn new(step: &SamplerStep, n_vocab: i32, vocab: Option<&Vocab>) -> Sampler {
        use SamplerStep as S;
        let ptr = match *step {
            S::LogitBias(ref biases) => {
                let bias: Vec<sys::llama_logit_bias> =
                    biases.iter().map(|&(token, bias)| sys::llama_logit_bias { token, bias }).collect();
                let n = i32::try_from(bias.len()).expect("fewer than tokens");
                // SAFETY: the array is live and of the given length; it is copied.
                unsafe { sys::llama_sampler_init_logit_bias(n_vocab, n, bias.as_ptr()) }
            }
            S::Penalties { last_n, repeat, freq, present } => {
                // SAFETY: takes numbers.
                unsafe { sys::llama_sampler_init_penalties(n_vocab, last_n, repeat, freq, present) }
            }
            S::Dry { multiplier, base, allowed_length, last_n, ref breakers } => {
                let texts: Vec<CString> =
                    breakers.iter().map(|b| CString::new(b.as_str()).expect("no zero bytes")).collect();
                let mut list: Vec<_> = texts.iter().map(|t| t.as_ptr()).collect();
                let (vocab, n) = match vocab {
                    Some(vocab) => (vocab.as_ptr(), list.len()),
                    None => (std::ptr::null(), 0),
                };
                let list = list.as_mut_ptr();
                // SAFETY: the texts and their list are live and copied; the vocabulary is live, and looked at only if there are texts.
                unsafe { sys::llama_sampler_init_dry(vocab, multiplier, base, allowed_length, last_n, list.cast(), n) }
            }
            // SAFETY: takes a number.
            S::TopNSigma(n) => unsafe { sys::llama_sampler_init_top_n_sigma(n) },
            // SAFETY: takes a number.
            S::TopK(k) => unsafe { sys::llama_sampler_init_top_k(k) },
            // SAFETY: takes numbers.
            S::Typical(p) => unsafe { sys::llama_sampler_init_typical(p, 1) },
            // SAFETY: takes numbers.
            S::TopP(p) => unsafe { sys::llama_sampler_init_top_p(p, 1) },
            // SAFETY: takes numbers.
            S::MinP(p) => unsafe { sys::llama_sampler_init_min_p(p, 1) },
            S::Xtc { probability, threshold, seed } => {
                // SAFETY: takes numbers.
                unsafe { sys::llama_sampler_init_xtc(probability, threshold, 1, seed) }
            }
            S::Temperature { temperature, range, exponent } => {
                // SAFETY: takes numbers.
                unsafe { sys::llama_sampler_init_temp_ext(temperature, range, exponent) }
            }
            // SAFETY: takes nothing.
            S::Greedy => unsafe { sys::llama_sampler_init_greedy() },
            // SAFETY: takes a number.
            S::Dist { seed } => unsafe { sys::llama_sampler_init_dist(seed) },
            S::MirostatV1 { tau, eta, seed } => {
                // SAFETY: takes numbers.
                unsafe { sys::llama_sampler_init_mirostat(n_vocab, seed, tau, eta, MIROSTAT_M) }
            }
            // SAFETY: takes numbers.
            S::MirostatV2 { tau, eta, seed } => unsafe { sys::llama_sampler_init_mirostat_v2(seed, tau, eta) },
            // SAFETY: takes numbers.
            S::AdaptiveP { target, decay, seed } => unsafe { sys::llama_sampler_init_adaptive_p(target, decay, seed) },
        };
        let draws_itself = matches!(step, S::MirostatV1 { .. } | S::MirostatV2 { .. } | S::AdaptiveP { .. });
        let wants_possible = draws_itself || matches!(step, S::Typical(_) | S::Greedy | S::Dist { .. });
        Sampler { ptr: NonNull::new(ptr).expect("memory for samplers"), wants_possible }
    }
}

/// Samplers that are applied one after the other, of which the last one draws.
#[derive(Debug)]
pub struct SamplerChain {
    samplers: Vec<Sampler>,
    candidates: Vec<sys::llama_token_data>,
}

/// Logits so far below the best one have no probability that a 32-bit float could tell from 0.
const IMPOSSIBLE: f32 = 80.0;

impl SamplerChain {
    /// A chain for a vocabulary of `n_vocab` tokens. Texts of [`SamplerStep::Dry`] are looked up in `vocab`; without one it has none.
    pub fn new(steps: &[SamplerStep], n_vocab: usize, vocab: Option<&Vocab>) -> SamplerChain {
        let n_vocab = i32::try_from(n_vocab).expect("vocabularies are counted in i32");
        let samplers = steps.iter().map(|step| Sampler::new(step, n_vocab, vocab)).collect();
        SamplerChain { samplers, candidates: Vec::new() }
    }

    /// Draws a token. `None` if no token is possible, or a logit is NaN or infinite: libllama's draw must not see these.
    pub fn sample(&mut self, logits: &[f32]) -> Option<i32> {
        if !logits.iter().all(|&l| l < f32::INFINITY) || !logits.iter().any(|l| l.is_finite()) {
            return None;
        }
        self.candidates.clear();
        self.candidates.extend(logits.iter().zip(0..).map(|(&logit, id)| sys::llama_token_data { id, logit, p: 0.0 }));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        for sampler in &self.samplers {
            if sampler.wants_possible {
                drop_impossible(&mut array);
                if array.size == 0 {
                    return None;
                }
            }
            // SAFETY: sampler and array are live, and the array describes the vector or a part of it.
            unsafe { sys::llama_sampler_apply(sampler.ptr.as_ptr(), &mut array) };
        }
        let selected = usize::try_from(array.selected).ok().filter(|&i| i < array.size)?;
        // SAFETY: samplers only shrink, move up in and reorder the array; the index is below its size.
        Some(unsafe { *array.data.add(selected) }.id)
    }

    /// Tells the samplers which token was taken, for penalties.
    pub fn accept(&mut self, token: i32) {
        for sampler in &self.samplers {
            // SAFETY: the sampler is live.
            unsafe { sys::llama_sampler_accept(sampler.ptr.as_ptr(), token) };
        }
    }
}

/// Leaves out candidates of probability 0, in place and in their order; all of them if the best logit is no number.
fn drop_impossible(array: &mut sys::llama_token_data_array) {
    // SAFETY: the array describes initialised candidates of the chain's vector, which nobody else looks at meanwhile.
    let candidates = unsafe { std::slice::from_raw_parts_mut(array.data, array.size) };
    let best = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    let mut n = 0;
    for i in 0..candidates.len() {
        if candidates[i].logit > best - IMPOSSIBLE {
            candidates[n] = candidates[i];
            n += 1;
        }
    }
    array.size = n;
}
