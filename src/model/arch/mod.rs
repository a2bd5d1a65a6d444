//! The architectures that pp-run runs on its own graphs.
//!
//! To add one:
//!
//! 1. Write a file here with an [`Architecture`]: hyper-parameters from metadata, tensors by name and shape, and a graph that reads like the
//!    figure of the paper, out of the blocks that [`crate::graph::GraphBuilder`] has. What is like an architecture that is here already is
//!    called, not written again. A block of a kind that is new goes into `graph/` and, as plain data, into `weights/tensors.rs`.
//! 2. Add it to [`ARCHITECTURES`].
//! 3. Add a case to `Arch` in `tests/common/forge.rs`, which makes models of random numbers: `tests/oracle.rs` compares the logits of all of
//!    them with libllama's.
//!
//! Nothing here mentions pruning or kernels: both come with the blocks.

mod gemma2;
mod gemma3;
mod gemma4;
mod gpt_oss;
mod granite;
mod llama;
mod mistral3;
mod opt;
mod parts;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3moe;
mod smollm3;

use super::hparams::Hparams;
use super::keys::Keys;
use super::options::RopeOptions;
use crate::error::{Error, Result, shown};
use crate::gguf::Gguf;

pub use parts::{Architecture, Tensors};

/// All of them.
pub const ARCHITECTURES: &[Architecture] = &[
    llama::LLAMA,
    qwen2::QWEN2,
    qwen3::QWEN3,
    qwen3moe::QWEN3MOE,
    phi3::PHI3,
    mistral3::MISTRAL3,
    smollm3::SMOLLM3,
    granite::GRANITE,
    gemma2::GEMMA2,
    gemma3::GEMMA3,
    gemma4::GEMMA4,
    gpt_oss::GPT_OSS,
    opt::OPT,
];

/// GGML_QNT_VERSION: how ggml's quantised blocks are laid out.
const QUANTIZATION_VERSION: u32 = 2;

/// Whether a file's model runs on a graph of ours: we know the architecture, its experts if it has any, and all that its matrices need.
pub fn has_graph(gguf: &Gguf) -> bool {
    let meta = gguf.metadata();
    let name = meta.architecture();
    let has_experts = meta.u32(&format!("{name}.expert_count")).is_ok_and(|n| n.is_some_and(|n| n > 0));
    // Files of NVFP4 have a factor for each matrix, which libllama applies.
    if gguf.tensors().iter().any(|t| t.name.starts_with("blk.") && t.name.ends_with("scale")) {
        return false;
    }
    // A file without a name is one for our own errors.
    name.is_empty() || ARCHITECTURES.iter().any(|a| a.name == name && (a.has_experts || !has_experts))
}

/// The error for an architecture that nobody knows.
pub fn unknown(name: &str) -> Error {
    let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
    Error::unsupported(format!(
        "this file is fine, but neither pp-run nor libllama knows the architecture '{}' yet; pp-run has graphs of its own for: {}",
        shown(name),
        known.join(", ")
    ))
}

/// The architecture of a file, and its hyper-parameters. [`crate::error::Kind::Unsupported`] for an architecture that pp-run does not know
/// and for variants of a known one; [`crate::error::Kind::Malformed`] for missing or impossible values.
pub fn read(gguf: &Gguf, rope: &RopeOptions) -> Result<(&'static Architecture, Hparams)> {
    read_inner(gguf, rope).map_err(|e| e.in_file(gguf.path()))
}

fn read_inner(gguf: &Gguf, rope: &RopeOptions) -> Result<(&'static Architecture, Hparams)> {
    let meta = gguf.metadata();
    let name = meta.str("general.architecture")?.unwrap_or_default();
    if name.is_empty() {
        return Err(Error::malformed("metadata key 'general.architecture' is missing or empty: this is no model"));
    }
    let Some(architecture) = ARCHITECTURES.iter().find(|a| a.name == name) else {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        return Err(Error::unsupported(format!(
            "pp-run has no graph of its own for the architecture '{}'; it has those of: {}",
            shown(name),
            known.join(", ")
        )));
    };
    let quantized = gguf.tensors().iter().any(|t| t.ty.is_quantized());
    if let Some(version) = meta.u32("general.quantization_version")?.filter(|&v| quantized && v != QUANTIZATION_VERSION)
    {
        return Err(Error::unsupported(format!(
            "general.quantization_version is {version}; pp-run knows {QUANTIZATION_VERSION}: convert the model again"
        )));
    }
    let n_vocab = match gguf.tensor("token_embd.weight") {
        Some(t) => usize::try_from(t.ne[1]).expect("dimensions were checked against the file's size"),
        None => return Err(Error::malformed("tensor 'token_embd.weight' is missing")),
    };
    let hparams = (architecture.hparams)(&Keys { meta, arch: name, file: gguf.header() }, n_vocab, rope)?;
    if hparams.experts.is_some() && !architecture.has_experts {
        let message =
            format!("the architecture '{name}' with experts: pp-run has no graph for that (--engine libllama)");
        return Err(Error::unsupported(message));
    }
    Ok((architecture, hparams))
}
