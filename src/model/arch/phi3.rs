//! Architecture `phi3`: Phi 3, 3.5 and 4.

use super::llama;
use super::parts::{self, Architecture, Tensors};
use crate::error::{Error, Result};
use crate::model::hparams::{Hparams, Pairs};
use crate::weights::{Activation, Factors, Loader, Mlp};

/// As llama, with one matrix for queries, keys and values and one for gate and up; a head may be rotated in part, with frequencies that
/// depend on the context's length. Windows that files name are ignored, as in llama.cpp, whose
/// converter did not write them rightly for all models.
pub const PHI3: Architecture = Architecture {
    name: "phi3",
    has_experts: false,
    hparams: |keys, n_vocab, options| Hparams::common(keys, n_vocab, options, Pairs::PartOfHalves),
    tensors,
    graph: llama::graph,
};

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    let factors = factors(loader, h)?;
    parts::tensors(loader, h, |loader, il| {
        let (n_embd, n_ff) = (h.n_embd, h.layers[il].n_ff);
        let mut attn = parts::attention(loader, h, il, &factors)?;
        parts::scale_queries(&mut attn);
        let [gate, up] = loader.fused(&format!("blk.{il}.ffn_up"), n_embd, [n_ff, n_ff], il)?;
        let down = loader.linear(&format!("blk.{il}.ffn_down"), n_ff, n_embd, il)?;
        let mut norm = |name: &str| loader.rms_norm(&format!("blk.{il}.{name}"), n_embd, h.norm_eps, il);
        let (attn_norm, ffn_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        let mlp = Mlp::Gated { gate, up, down, act: Activation::Silu };
        Ok(parts::plain_layer(attn_norm, attn, ffn_norm, mlp))
    })
}

/// Divisors of the frequencies: others for contexts beyond the first training's.
fn factors(loader: &mut Loader, h: &Hparams) -> Result<Factors> {
    let rope = h.rope.expect("phi3 rotates");
    let mut factors = |name: &str| loader.rope_factors(name, rope.n_dims as usize / 2);
    match (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?) {
        (None, None) => Ok(Factors::None),
        (Some(short), Some(long)) => Ok(Factors::ByContext { n_ctx: rope.n_ctx_orig as usize, short, long }),
        _ => Err(Error::malformed(
            "of the tensors rope_factors_short.weight and rope_factors_long.weight one is missing",
        )),
    }
}
