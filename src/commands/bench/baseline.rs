//! llama.cpp's library as the baseline: the model in each way that it can keep the weights.

use std::ops::ControlFlow;
use std::path::Path;

use ggml::llama::{self, LlamaError, ModelParams};
use ggml::{Device, Usage};

use crate::commands::signals::Signals;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::log::Log;
use crate::system::memory;

/// A model in libllama's memory.
pub struct Baseline {
    pub model: llama::Model,
    /// Whether ggml rearranged weights for its kernels; `None` if it has no such kernels for any of this model
    pub repack: Option<bool>,
}

impl Baseline {
    /// Loads the model, with and without rearranged weights if that is a difference: ggml has kernels for weights as they are in a file
    /// which are faster for some types. The rearranged ones are a copy; where it does not fit into memory, a note says so.
    pub fn load(gguf: &Gguf, n_gpu_layers: u32, log: &Log, signals: &Signals) -> Result<Vec<Baseline>> {
        let bytes = repacked_bytes(gguf);
        if bytes == 0 {
            return Ok(vec![Baseline { model: load(gguf.path(), n_gpu_layers, true, signals)?, repack: None }]);
        }
        let mut baselines =
            vec![Baseline { model: load(gguf.path(), n_gpu_layers, false, signals)?, repack: Some(false) }];
        let fits = memory::require(bytes, "the weights that llama.cpp rearranges", "a smaller model fits");
        match fits.and_then(|()| load(gguf.path(), n_gpu_layers, true, signals)) {
            Ok(model) => baselines.push(Baseline { model, repack: Some(true) }),
            Err(e) if signals.is_interrupted() => return Err(e),
            Err(e) => log.warn(&format!("llama.cpp runs on the weights as they are in the file only: {e}")),
        }
        Ok(baselines)
    }
}

fn load(path: &Path, n_gpu_layers: u32, repack: bool, signals: &Signals) -> Result<llama::Model> {
    let params = ModelParams { n_gpu_layers, mmap: true, repack };
    let mut watch = |_| if signals.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    llama::Model::load_watched(path, &params, &mut watch).map_err(|e| match signals.is_interrupted() {
        true => signals.error(),
        false => refused(&e).in_file(path),
    })
}

/// What libllama said.
pub fn refused(e: &LlamaError) -> Error {
    Error::failed(format!("llama.cpp: {}", e.0))
}

/// Bytes of the weights that ggml rearranges for its kernels on the CPU.
fn repacked_bytes(gguf: &Gguf) -> u64 {
    let cpu = Device::cpu();
    let layouts = cpu.extra_buffer_types();
    let is_repacked = |ty: ggml::Type, ne: [u64; 3]| {
        let usage = if ne[2] > 1 { Usage::MulMatId } else { Usage::MulMat };
        ne[1] > 1 && layouts.iter().any(|&layout| cpu.supports(layout, ty, ne, usage))
    };
    let tensors = gguf.tensors().iter().filter(|t| is_repacked(t.ty, [t.ne[0], t.ne[1], t.ne[2]]));
    tensors.map(|t| t.n_bytes).sum()
}
