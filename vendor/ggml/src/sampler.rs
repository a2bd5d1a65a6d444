//! libllama's samplers, in the order of llama.cpp's tools.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

/// Settings of a chain; a step whose setting switches it off is left out.
#[derive(Debug, Clone)]
pub struct SamplerParams {
    /// Tokens that are never drawn.
    pub banned: Vec<i32>,
    /// Tokens that penalties look back at.
    pub penalty_last_n: i32,
    /// 1 = off
    pub penalty_repeat: f32,
    /// 0 = off
    pub penalty_freq: f32,
    /// 0 = off
    pub penalty_present: f32,
    /// 0 = off
    pub top_k: i32,
    /// 1 = off
    pub top_p: f32,
    /// 0 = off
    pub min_p: f32,
    /// At most 0 = the most likely token
    pub temperature: f32,
    /// Seed of the draw.
    pub seed: u32,
}

/// A chain of samplers that ends in a draw.
#[derive(Debug)]
pub struct SamplerChain {
    ptr: NonNull<sys::llama_sampler>,
    candidates: Vec<sys::llama_token_data>,
}

impl Drop for SamplerChain {
    fn drop(&mut self) {
        // SAFETY: this owner made the chain, which owns its samplers, and frees it once.
        unsafe { sys::llama_sampler_free(self.ptr.as_ptr()) }
    }
}

impl SamplerChain {
    /// A chain for a vocabulary of `n_vocab` tokens.
    pub fn new(params: &SamplerParams, n_vocab: usize) -> SamplerChain {
        let n_vocab = i32::try_from(n_vocab).expect("vocabularies are counted in i32");
        // SAFETY: returns a struct by value.
        let chain_params = unsafe { sys::llama_sampler_chain_default_params() };
        // SAFETY: takes a struct by value.
        let ptr = unsafe { sys::llama_sampler_chain_init(chain_params) };
        let chain = SamplerChain { ptr: NonNull::new(ptr).expect("memory for samplers"), candidates: Vec::new() };
        let add = |sampler: *mut sys::llama_sampler| {
            // SAFETY: both are live; the chain takes ownership.
            unsafe { sys::llama_sampler_chain_add(chain.ptr.as_ptr(), sampler) };
        };
        if !params.banned.is_empty() {
            let bias: Vec<sys::llama_logit_bias> =
                params.banned.iter().map(|&token| sys::llama_logit_bias { token, bias: f32::NEG_INFINITY }).collect();
            let n = i32::try_from(bias.len()).expect("fewer than tokens");
            // SAFETY: the array is live and of the given length; it is copied.
            add(unsafe { sys::llama_sampler_init_logit_bias(n_vocab, n, bias.as_ptr()) });
        }
        let penalties = (params.penalty_last_n, params.penalty_repeat, params.penalty_freq, params.penalty_present);
        if params.penalty_last_n != 0 && penalties != (params.penalty_last_n, 1.0, 0.0, 0.0) {
            let (n, repeat, freq, present) = penalties;
            // SAFETY: takes numbers.
            add(unsafe { sys::llama_sampler_init_penalties(n_vocab, n, repeat, freq, present) });
        }
        if params.temperature <= 0.0 {
            // SAFETY: takes nothing.
            add(unsafe { sys::llama_sampler_init_greedy() });
            return chain;
        }
        if params.top_k > 0 {
            // SAFETY: takes a number.
            add(unsafe { sys::llama_sampler_init_top_k(params.top_k) });
        }
        if params.top_p < 1.0 {
            // SAFETY: takes numbers.
            add(unsafe { sys::llama_sampler_init_top_p(params.top_p, 1) });
        }
        if params.min_p > 0.0 {
            // SAFETY: takes numbers.
            add(unsafe { sys::llama_sampler_init_min_p(params.min_p, 1) });
        }
        // SAFETY: takes a number.
        add(unsafe { sys::llama_sampler_init_temp(params.temperature) });
        // SAFETY: takes a number.
        add(unsafe { sys::llama_sampler_init_dist(params.seed) });
        chain
    }

    /// Draws a token. `None` if no logit is finite, or one is NaN or infinite: libllama's draw must not see these.
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
        // SAFETY: chain and array are live, and the array describes the vector.
        unsafe { sys::llama_sampler_apply(self.ptr.as_ptr(), &mut array) };
        let selected = usize::try_from(array.selected).ok().filter(|&i| i < array.size)?;
        // SAFETY: samplers only shrink and reorder the array; the index is below its size. A sampler may point `data` to
        // memory of its own, which lives until the next call.
        Some(unsafe { *array.data.add(selected) }.id)
    }

    /// Tells the chain which token was taken, for its penalties.
    pub fn accept(&mut self, token: i32) {
        // SAFETY: the chain is live.
        unsafe { sys::llama_sampler_accept(self.ptr.as_ptr(), token) };
    }
}
