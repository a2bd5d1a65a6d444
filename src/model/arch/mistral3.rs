//! Architecture `mistral3`: Ministral 3.

use super::llama;
use super::parts::Architecture;
use crate::error::{Error, Result};
use crate::model::hparams::{Hparams, Pairs};
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::Temperature;

/// As llama; positions beyond the first training's context have a temperature of attention, and YaRN has settings in the file.
pub const MISTRAL3: Architecture =
    Architecture { name: "mistral3", has_experts: false, hparams, tensors: llama::tensors, graph: llama::graph };

fn hparams(keys: &Keys, n_vocab: usize, options: &RopeOptions) -> Result<Hparams> {
    let or = |set: Option<f32>, key: &str| Ok::<_, Error>(if set.is_some() { set } else { keys.f32(key)? });
    let options = RopeOptions {
        yarn_beta_fast: or(options.yarn_beta_fast, "rope.scaling.yarn_beta_fast")?,
        yarn_beta_slow: or(options.yarn_beta_slow, "rope.scaling.yarn_beta_slow")?,
        ..options.clone()
    };
    let mut h = Hparams::common(keys, n_vocab, &options, Pairs::Neighbours)?;
    let rope = h.rope.as_mut().expect("mistral3 rotates");
    if let Some(weight) = keys.positive("rope.scaling.yarn_log_multiplier")?
        && rope.ext_factor != 0.0
    {
        rope.attn_factor /= 1.0 + 0.1 * weight * (1.0 / rope.freq_scale).max(1.0).ln();
    }
    if let Some(scale) = keys.positive("attention.temperature_scale")? {
        // The file's own, whatever --yarn-orig-ctx says.
        let length = keys.u32("rope.scaling.original_context_length")?.unwrap_or(h.n_ctx_train);
        if length == 0 {
            let message = format!("{}.rope.scaling.original_context_length is 0, expected more", keys.arch);
            return Err(Error::malformed(message));
        }
        h.temperature = Some(Temperature { scale, length });
    }
    Ok(h)
}
