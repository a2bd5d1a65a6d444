//! Hyper-parameters: what a file's metadata says about the shape of the model, checked.

use super::options::{RopeOptions, RopeScaling};
use crate::error::{Error, Result, shown};
use crate::gguf::{Gguf, Metadata};

/// Architectures that pp-run can run, as `general.architecture` names them.
pub const ARCHITECTURES: &[&str] = &["llama"];

/// Shape of a model of architecture `llama`.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// Context length of the training.
    pub n_ctx_train: u32,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head; queries, keys and values alike.
    pub n_embd_head: usize,
    /// Hidden width of the MLP.
    pub n_ff: usize,
    /// Rows of the embedding table.
    pub n_vocab: usize,
    /// Epsilon of RMS norm.
    pub norm_rms_eps: f32,
    /// Factor on attention logits before the softmax.
    pub kq_scale: f32,
    /// Rotary position embedding, overrides applied.
    pub rope: ggml::Rope,
}

/// GGML_QNT_VERSION: how ggml's quantised blocks are laid out.
const QUANTIZATION_VERSION: u32 = 2;

/// Limits that no model comes near: they keep products of sizes far from overflow and ggml's own limits.
const MAX_LAYERS: u32 = 1024;
const MAX_WIDTH: u32 = 1 << 24;
const MAX_CTX_TRAIN: u32 = 1 << 30;

impl Hparams {
    /// Reads and checks the hyper-parameters. [`crate::error::Kind::Unsupported`] for an architecture that pp-run does
    /// not know and for variants of a known one; [`crate::error::Kind::Malformed`] for missing or impossible values.
    pub fn read(gguf: &Gguf, rope: &RopeOptions) -> Result<Hparams> {
        Hparams::parse(gguf, rope).map_err(|e| e.in_file(gguf.path()))
    }

    fn parse(gguf: &Gguf, rope_options: &RopeOptions) -> Result<Hparams> {
        let meta = gguf.metadata();
        let arch = meta.str("general.architecture")?.unwrap_or_default();
        if arch.is_empty() {
            return Err(Error::malformed("metadata key 'general.architecture' is missing or empty: this is no model"));
        }
        if !ARCHITECTURES.contains(&arch) {
            return Err(Error::unsupported(format!(
                "this file is fine, but pp-run does not know the architecture '{}' yet; it knows: {}",
                shown(arch),
                ARCHITECTURES.join(", ")
            )));
        }
        let keys = Keys { meta, arch };
        if keys.u32("expert_count")?.unwrap_or(0) > 0 {
            return Err(Error::unsupported("this file is fine, but pp-run does not run mixture-of-experts models yet"));
        }

        let quantized = gguf.tensors().iter().any(|t| t.ty.is_quantized());
        if let Some(version) =
            meta.u32("general.quantization_version")?.filter(|&v| quantized && v != QUANTIZATION_VERSION)
        {
            return Err(Error::unsupported(format!(
                "general.quantization_version is {version}; pp-run knows {QUANTIZATION_VERSION}: convert the model again"
            )));
        }

        let n_layer = keys.count("block_count", 1, MAX_LAYERS)?;
        let n_embd = keys.count("embedding_length", 1, MAX_WIDTH)?;
        let n_head = keys.count("attention.head_count", 1, MAX_WIDTH)?;
        let n_head_kv = match keys.u32("attention.head_count_kv")? {
            Some(_) => keys.count("attention.head_count_kv", 1, MAX_WIDTH)?,
            None => n_head,
        };
        let n_ff = keys.count("feed_forward_length", 1, MAX_WIDTH)?;
        let n_ctx_train = u32::try_from(keys.count("context_length", 1, MAX_CTX_TRAIN)?).expect("checked above");
        if n_head % n_head_kv != 0 {
            return Err(Error::malformed(format!(
                "{arch}.attention.head_count is {n_head}, which is not a multiple of head_count_kv = {n_head_kv}"
            )));
        }

        let default_head = u32::try_from(n_embd / n_head).expect("a quotient of u32");
        let n_embd_head = keys.u32("attention.key_length")?.unwrap_or(default_head);
        let n_embd_head_v = keys.u32("attention.value_length")?.unwrap_or(default_head);
        let n_rot = keys.u32("rope.dimension_count")?.unwrap_or(n_embd_head);
        if n_embd_head == 0 || n_embd_head > MAX_WIDTH || !n_embd_head.is_multiple_of(2) {
            return Err(Error::malformed(format!(
                "the width of a head must be an even number from 2 to {MAX_WIDTH}, got {n_embd_head} (embedding_length \
                 {n_embd}, head_count {n_head})"
            )));
        }
        if n_embd_head_v != n_embd_head {
            return Err(Error::unsupported(format!(
                "keys of width {n_embd_head} with values of width {n_embd_head_v}: pp-run knows {arch} models with equal \
                 widths only"
            )));
        }
        if n_rot != n_embd_head {
            return Err(Error::malformed(format!("{arch}.rope.dimension_count is {n_rot}, expected {n_embd_head}")));
        }

        let norm_rms_eps = keys
            .f32("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
        if !(norm_rms_eps > 0.0 && norm_rms_eps < 1.0) {
            return Err(Error::malformed(format!(
                "{arch}.attention.layer_norm_rms_epsilon is {norm_rms_eps}, expected more than 0 and less than 1"
            )));
        }
        let n_vocab = match gguf.tensor("token_embd.weight") {
            Some(t) => usize::try_from(t.ne[1]).expect("dimensions were checked against the file's size"),
            None => return Err(Error::malformed("tensor 'token_embd.weight' is missing")),
        };

        Ok(Hparams {
            n_ctx_train,
            n_embd,
            n_layer,
            n_head,
            n_head_kv,
            n_embd_head: n_embd_head as usize,
            n_ff,
            n_vocab,
            norm_rms_eps,
            kq_scale: 1.0 / (n_embd_head as f32).sqrt(),
            rope: rope(&keys, rope_options, n_rot, n_ctx_train)?,
        })
    }

    /// Width of all keys (or values) of one token.
    pub fn n_embd_gqa(&self) -> usize {
        self.n_embd_head * self.n_head_kv
    }

    /// Width of all queries of one token.
    pub fn n_embd_q(&self) -> usize {
        self.n_embd_head * self.n_head
    }
}

/// Metadata of one architecture: keys are prefixed with its name.
struct Keys<'a> {
    meta: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.meta.u32(&format!("{}.{key}", self.arch))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.meta.f32(&format!("{}.{key}", self.arch))
    }

    fn str(&self, key: &str) -> Result<Option<&str>> {
        self.meta.str(&format!("{}.{key}", self.arch))
    }

    fn missing(&self, key: &str) -> Error {
        Error::malformed(format!("metadata key '{}.{key}' is missing", self.arch))
    }

    /// A required number within limits.
    fn count(&self, key: &str, min: u32, max: u32) -> Result<usize> {
        let n = self.u32(key)?.ok_or_else(|| self.missing(key))?;
        if !(min..=max).contains(&n) {
            return Err(Error::malformed(format!("{}.{key} is {n}, expected {min} to {max}", self.arch)));
        }
        Ok(n as usize)
    }
}

/// RoPE settings as llama.cpp derives them from metadata and flags (llama-model.cpp, llama-context.cpp).
fn rope(keys: &Keys, options: &RopeOptions, n_rot: u32, n_ctx_train: u32) -> Result<ggml::Rope> {
    let arch = keys.arch;
    let scaling_train = match keys.str("rope.scaling.type")? {
        Some("none") => RopeScaling::None,
        Some("linear") | None => RopeScaling::Linear,
        Some("yarn") => RopeScaling::Yarn,
        Some(other) => {
            return Err(Error::unsupported(format!(
                "{arch}.rope.scaling.type is '{}'; pp-run knows none, linear and yarn",
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
        neox: false,
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
