//! Rotary position embedding: from metadata and flags to what ggml's kernel takes.

use super::keys::Keys;
use super::options::{RopeOptions, RopeScaling};
use crate::error::{Error, Result, shown};

/// RoPE settings as llama.cpp derives them from metadata and flags (llama-model.cpp, llama-context.cpp).
pub fn rope(keys: &Keys, options: &RopeOptions, neox: bool, n_rot: u32, n_ctx_train: u32) -> Result<ggml::Rope> {
    let arch = keys.arch;
    let scaling_train = match keys.str("rope.scaling.type")? {
        Some("none") => RopeScaling::None,
        Some("linear") | None => RopeScaling::Linear,
        Some("yarn") => RopeScaling::Yarn,
        // The factors that this kind has are tensors of their own.
        Some("longrope") => RopeScaling::Linear,
        Some(other) => {
            return Err(Error::unsupported(format!(
                "{arch}.rope.scaling.type is '{}'; pp-run knows none, linear, yarn and longrope",
                shown(other)
            )));
        }
    };
    let factor = match keys.f32("rope.scaling.factor")? {
        Some(f) => f,
        None => keys.f32("rope.scale_linear")?.unwrap_or(0.0),
    };
    let freq_scale_train = if factor == 0.0 { 1.0 } else { 1.0 / factor };
    let n_ctx_orig = match options.yarn_orig_ctx {
        Some(n) => n,
        None => keys.u32("rope.scaling.original_context_length")?.filter(|&n| n > 0).unwrap_or(n_ctx_train),
    };
    let freq_base = match options.freq_base {
        Some(base) => base,
        None => keys.f32("rope.freq_base")?.unwrap_or(10000.0),
    };

    let scaling = options.scaling.unwrap_or(scaling_train);
    let mut freq_scale = options.freq_scale.unwrap_or(freq_scale_train);
    if scaling == RopeScaling::None {
        freq_scale = 1.0;
    }
    let ext_factor = options.yarn_ext_factor.unwrap_or(if scaling == RopeScaling::Yarn { 1.0 } else { 0.0 });
    let mut attn_factor = options.yarn_attn_factor.unwrap_or(1.0);
    if ext_factor != 0.0 {
        // ggml's kernel multiplies by 1 + 0.1 ln(factor) whenever ext_factor is set: what is wanted is divided by it.
        let factor = 1.0 / freq_scale;
        attn_factor = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
        attn_factor *= 1.0 / (1.0 + 0.1 * factor.ln());
    }
    attn_factor *= keys.f32("rope.scaling.attn_factor")?.unwrap_or(1.0);

    let rope = ggml::Rope {
        n_dims: n_rot,
        neox,
        n_ctx_orig,
        freq_base,
        freq_scale,
        ext_factor,
        attn_factor,
        beta_fast: options.yarn_beta_fast.unwrap_or(32.0),
        beta_slow: options.yarn_beta_slow.unwrap_or(1.0),
    };
    let positive = |name: &str, value: f32| {
        if value.is_finite() && value > 0.0 {
            Ok(())
        } else {
            Err(Error::malformed(format!("RoPE {name} is {value}, expected a positive number")))
        }
    };
    positive("frequency base", rope.freq_base)?;
    positive("frequency scale", rope.freq_scale)?;
    positive("attention factor", rope.attn_factor)?;
    Ok(rope)
}
