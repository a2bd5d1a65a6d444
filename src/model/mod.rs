//! The model: hyper-parameters, weights, KV cache and graph.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::cli::options::{ModelOptions, RopeOptions};
use crate::error::Result;
use crate::gguf::Gguf;

/// A model in memory, ready to compute.
#[derive(Debug)]
pub struct Model {}

impl Model {
    /// Checks the tensors against the hyper-parameters and brings the weights into memory. `progress` is told the
    /// share done (0 to 1) and may stop the load, which then ends with `Kind::Interrupted`.
    pub fn load(
        _gguf: Arc<Gguf>,
        _options: &ModelOptions,
        _rope: &RopeOptions,
        _n_threads: u32,
        _progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Model> {
        todo!()
    }

    /// Number of tokens in the vocabulary (the width of the logits).
    pub fn n_vocab(&self) -> usize {
        todo!()
    }

    /// Context length in tokens that the model was trained with.
    pub fn n_ctx_train(&self) -> u32 {
        todo!()
    }

    /// What llama-bench calls it: `llama 7B Q4_0`, or `llama ?B Q4_0`.
    pub fn description(&self) -> String {
        todo!()
    }

    /// Bytes of all weights.
    pub fn n_bytes(&self) -> u64 {
        todo!()
    }

    /// Number of elements of all weights.
    pub fn n_params(&self) -> u64 {
        todo!()
    }

    /// `CPU`, or the names of the backends in use as llama-bench writes them: `CUDA,CPU`.
    pub fn backend(&self) -> String {
        todo!()
    }
}
