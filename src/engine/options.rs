//! The sizes and threads that a model is computed with.

use crate::graph::CacheType;

/// Sizes and threads of a session.
#[derive(Debug, Clone)]
pub struct Options {
    /// Context in tokens. `None`: the model's training length, made smaller if memory asks for it;
    /// `Some(0)`: the training length exactly.
    pub n_ctx: Option<u32>,
    /// Logical batch.
    pub n_batch: u32,
    /// Physical (micro-) batch.
    pub n_ubatch: u32,
    /// Threads for decoding, at the most: fewer compute while others use the processors.
    pub n_threads: usize,
    /// Threads for prompts, at the most.
    pub n_threads_batch: usize,
    /// Type of cached keys.
    pub cache_type_k: CacheType,
    /// Type of cached values.
    pub cache_type_v: CacheType,
    pub flash_attn: bool,
    /// Fewer threads compute while others use the processors. Results are the same.
    pub adapts: bool,
    /// Share of the time that is computed, more than 0, at most 1: between steps the program rests.
    pub power: f64,
    /// Nice value that the process takes before the model is loaded; `None`: that which it has.
    pub nice: Option<i32>,
    /// Attention reads a cache of 32-bit floats as it is. Else ggml's flash attention reads it in 16 bits, as in llama.cpp.
    pub exact: bool,
}

impl Options {
    /// llama.cpp's defaults, with `n_threads` threads.
    pub fn new(n_threads: usize) -> Options {
        Options {
            n_ctx: None,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads,
            n_threads_batch: n_threads,
            cache_type_k: CacheType::F16,
            cache_type_v: CacheType::F16,
            flash_attn: true,
            adapts: true,
            power: 1.0,
            nice: None,
            exact: false,
        }
    }
}
