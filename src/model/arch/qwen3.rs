//! Architecture `qwen3`: the dense models of Qwen 3.

use super::llama;
use super::parts::{Architecture, Tensors};
use crate::error::Result;
use crate::model::hparams::Hparams;
use crate::weights::Loader;

/// As llama, with a norm of each head's queries and keys; RoPE rotates dimensions that lie half a head apart.
pub const QWEN3: Architecture = Architecture {
    name: "qwen3",
    hparams: |keys, n_vocab, rope| Hparams::common(keys, n_vocab, rope, true),
    tensors,
    graph: llama::graph,
};

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    let mut tensors = llama::tensors(loader, h)?;
    for (il, layer) in tensors.layers.iter_mut().enumerate() {
        let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), h.n_embd_head, h.norm_rms_eps, il);
        layer.attn.q_norm = Some(norm("attn_q_norm")?);
        layer.attn.k_norm = Some(norm("attn_k_norm")?);
    }
    Ok(tensors)
}
