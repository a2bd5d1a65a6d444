//! Architecture `opt`: OPT, as `models/convert` writes it.

use super::llama;
use super::parts::{self, Architecture, Tensors};
use crate::error::Result;
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::Hparams;
use crate::weights::{Factors, Loader, Mlp};

/// Learned positions, layer norms, an MLP without a gate, biases everywhere.
pub const OPT: Architecture = Architecture {
    name: "opt",
    has_experts: false,
    hparams: |keys, n_vocab, _| Hparams::sizes(keys, n_vocab, keys.epsilon("attention.layer_norm_epsilon")),
    tensors,
    graph,
};

fn tensors(loader: &mut Loader, h: &Hparams) -> Result<Tensors> {
    let (n_embd, eps) = (h.n_embd, h.norm_eps);
    let tok_embd = loader.embeddings("token_embd.weight", [n_embd, h.n_vocab])?;
    let pos_embd = Some(loader.embeddings("position_embd.weight", [n_embd, h.n_ctx_train as usize])?);
    let norm = loader.layer_norm("output_norm", n_embd, eps, h.n_layer)?;
    let head = parts::head(loader, h, norm)?;
    let mut layer = |il: usize| {
        let attn = parts::attention(loader, h, il, &Factors::None)?;
        let n_ff = h.layers[il].n_ff;
        let mut linear =
            |name: &str, n_in: usize, n_out: usize| loader.linear(&format!("blk.{il}.{name}"), n_in, n_out, il);
        let mlp = Mlp::Plain { up: linear("ffn_up", n_embd, n_ff)?, down: linear("ffn_down", n_ff, n_embd)? };
        let mut norm = |name: &str| loader.layer_norm(&format!("blk.{il}.{name}"), n_embd, eps, il);
        let (attn_norm, ffn_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        Ok(parts::plain_layer(attn_norm, attn, ffn_norm, mlp))
    };
    let layers = (0..h.n_layer).map(&mut layer).collect::<Result<_>>()?;
    Ok(Tensors { tok_embd, pos_embd, per_layer: None, layers, head })
}

/// As llama's, on the sum of both embeddings (Hugging Face: modeling_opt.py).
fn graph(mut b: GraphBuilder, _: &Hparams, m: &Tensors) -> GraphSlots {
    let x = b.embed(m.tok_embd);
    let positions = b.embed_positions(m.pos_embd.expect("OPT has them"));
    let x = b.added(Some(positions), x);
    llama::layers(b, x, m)
}
