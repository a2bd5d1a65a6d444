//! Flags about the model, and the options that they become.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::value::{not_one_of, out_of_range, size};
use crate::error::{Error, Result};
use crate::gguf::OverrideValue;
use crate::model::{Options, RopeOptions, RopeScaling, RunBy};
use crate::weights::{self, GpuOptions, Kernels, Pack};

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Layers on the GPU: a number, 'all' or 'auto' [-ngl]
    ///
    /// They are counted from the last layer, the output as one more; auto takes as many as fit in the free memory of the GPUs beside the
    /// context. Needs a build with the cargo feature cuda, metal or vulkan.
    #[arg(long, alias = "gpu-layers", value_name = "N", allow_hyphen_values = true)]
    pub n_gpu_layers: Option<String>,
    /// GPUs to use, by their names in --list-devices, with commas between them; none [-dev]
    #[arg(long, value_name = "NAMES")]
    pub device: Option<String>,
    /// Shares of the layers for each GPU, such as 3,1; without it by their free memory [-ts]
    #[arg(long, value_name = "SHARES")]
    pub tensor_split: Option<String>,
    /// The number of the only GPU to use, from 0 [-mg]
    #[arg(long, value_name = "N")]
    pub main_gpu: Option<usize>,
    /// How the file is read: auto, mmap, none, mlock, mmap+mlock [-lm]
    #[arg(long, value_name = "MODE")]
    pub load_mode: Option<String>,
    /// Copy the weights into memory instead of using the mapped file in place
    #[arg(long)]
    pub no_mmap: bool,
    #[arg(long, hide = true)]
    pub mmap: bool,
    #[arg(long, hide = true, alias = "dio")]
    pub direct_io: bool,
    /// Keep the weights from being swapped out
    ///
    /// If the system does not allow it (ulimit -l) they are used unlocked, with a warning.
    #[arg(long)]
    pub mlock: bool,
    /// Look for NaN and infinities in the weights of files beyond 2 GiB too
    ///
    /// Files up to 2 GiB are always looked at.
    #[arg(long)]
    pub check_tensors: bool,
    /// Replace metadata: KEY=TYPE:VALUE with int, float, bool or str
    ///
    /// Repeatable; several can stand behind one flag, with commas between them.
    #[arg(long, value_name = "K=T:V", action = ArgAction::Append)]
    pub override_kv: Vec<String>,
    /// Whose kernels multiply weights on the CPU: ggml (as llama.cpp), native (our own), auto (the faster ones)
    ///
    /// ggml gives llama.cpp's very numbers. native multiplies in 8 bits, straight from the file, with AVX-512 VNNI, AVX-VNNI,
    /// AVX2, NEON with dot products, or on any processor. auto takes those that are known to be faster, by the processor and the
    /// weight's type, and never measures: on x86 from AVX2 on native for quantised types, else ggml. With --no-mmap, and for
    /// layers on the GPU, auto is ggml.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub kernels: String,
    /// When weights are packed for our own kernels: batch (anew for each), resident (once, at the load)
    ///
    /// Prompts are multiplied with weights in a layout of their own. batch makes it a few rows at a time, which takes no
    /// memory and, by the line of statistics (pack), little time; resident keeps it, 9 bits for each weight.
    #[arg(long, value_name = "HOW", default_value = "batch")]
    pub pack: String,
    /// Whose engine runs the model: own (graphs, kernels and pruning of ours), libllama, auto (ours where we have the architecture)
    ///
    /// libllama runs every architecture that it knows, without pruning and without kernels of our own.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub engine: String,
    #[command(flatten)]
    pub rope: RopeArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context")]
pub struct RopeArgs {
    /// Base of the RoPE frequencies
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub rope_freq_base: Option<f32>,
    /// Factor on RoPE positions
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub rope_freq_scale: Option<f32>,
    /// Divisor of RoPE positions: 1 / --rope-freq-scale
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub rope_scale: Option<f32>,
    /// RoPE scaling: none, linear, yarn
    #[arg(long, value_name = "KIND")]
    pub rope_scaling: Option<String>,
    /// YaRN: context of the training
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub yarn_orig_ctx: Option<i64>,
    /// YaRN: share of extrapolation
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_ext_factor: Option<f32>,
    /// YaRN: factor on the magnitude
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_attn_factor: Option<f32>,
    /// YaRN: low end of the correction range
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_beta_slow: Option<f32>,
    /// YaRN: high end of the correction range
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_beta_fast: Option<f32>,
}

pub fn options(path: PathBuf, a: ModelArgs) -> Result<Options> {
    let n_layers = match a.n_gpu_layers.as_deref() {
        None | Some("auto" | "-1") => None,
        Some("all" | "-2") => Some(u32::MAX),
        Some(n) => Some(n.parse().map_err(|_| not_one_of("-ngl", n, "a number, all, auto"))?),
    };
    let devices = a.device.map(|names| match names.trim() {
        "none" => Vec::new(),
        names => names.split(',').map(|name| name.trim().to_owned()).collect(),
    });
    // llama.cpp takes slashes, too.
    let split = a.tensor_split.as_deref().map(|list| list.split([',', '/']).map(share).collect::<Result<Vec<f64>>>());
    let split = split.transpose()?.unwrap_or_default();
    if !split.is_empty() && split.iter().sum::<f64>() == 0.0 {
        return Err(out_of_range("--tensor-split", 0, "more than 0 in all"));
    }
    let gpu = GpuOptions { n_layers, devices, split, only: a.main_gpu };
    let (no_mmap, mlock) = match a.load_mode.as_deref() {
        None | Some("auto") => (a.no_mmap || a.direct_io, a.mlock),
        Some("mmap") => (false, a.mlock),
        Some("none" | "dio") => (true, a.mlock),
        Some("mlock") => (true, true),
        Some("mmap+mlock") => (false, true),
        Some(other) => return Err(not_one_of("--load-mode", other, "auto, mmap, none, mlock, mmap+mlock")),
    };
    let kernels = match a.kernels.as_str() {
        "auto" => Kernels::Auto,
        "ggml" => Kernels::Ggml,
        "native" => Kernels::Native,
        other => return Err(not_one_of("--kernels", other, "auto, ggml, native")),
    };
    let pack = match a.pack.as_str() {
        "batch" => Pack::Batch,
        "resident" if kernels == Kernels::Ggml => {
            return Err(Error::usage("--pack resident is of no use with --kernels ggml, which packs nothing"));
        }
        "resident" => Pack::Resident,
        other => return Err(not_one_of("--pack", other, "batch, resident")),
    };
    let run_by = match a.engine.as_str() {
        "auto" => RunBy::Auto,
        "own" => RunBy::Own,
        "libllama" => RunBy::Libllama,
        other => return Err(not_one_of("--engine", other, "auto, own, libllama")),
    };
    let overrides = a.override_kv.iter().flat_map(|list| list.split(',')).map(override_kv).collect::<Result<_>>()?;
    Ok(Options {
        path,
        mlock,
        check_tensors: a.check_tensors,
        override_kv: overrides,
        weights: weights::Options { gpu, no_mmap, kernels, pack },
        rope: rope_options(a.rope)?,
        run_by,
    })
}

/// A GPU's share of the layers.
fn share(text: &str) -> Result<f64> {
    let number = text.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    number.ok_or_else(|| Error::usage(format!("--tensor-split: '{text}' is no share: expected numbers such as 3,1")))
}

/// `key=type:value`
fn override_kv(text: &str) -> Result<(String, OverrideValue)> {
    let bad =
        || Error::usage(format!("--override-kv: '{text}' is not KEY=TYPE:VALUE with the type int, float, bool or str"));
    let (key, typed) = text.split_once('=').ok_or_else(bad)?;
    let (ty, value) = typed.split_once(':').ok_or_else(bad)?;
    let value = match ty {
        "int" => OverrideValue::Int(value.parse().map_err(|_| bad())?),
        "float" => OverrideValue::Float(value.parse().map_err(|_| bad())?),
        "bool" => OverrideValue::Bool(value.parse().map_err(|_| bad())?),
        "str" => OverrideValue::Str(value.to_owned()),
        _ => return Err(bad()),
    };
    Ok((key.to_owned(), value))
}

fn rope_options(a: RopeArgs) -> Result<RopeOptions> {
    let scaling = match a.rope_scaling.as_deref() {
        None => None,
        Some("none") => Some(RopeScaling::None),
        Some("linear") => Some(RopeScaling::Linear),
        Some("yarn") => Some(RopeScaling::Yarn),
        Some(other) => return Err(not_one_of("--rope-scaling", other, "none, linear, yarn")),
    };
    let positive = |flag: &str, x: Option<f32>| match x {
        Some(x) if !(x.is_finite() && x > 0.0) => Err(out_of_range(flag, x, "more than 0")),
        x => Ok(x),
    };
    // For llama.cpp a negative number means that the flag is not set (and so does 0 for the context).
    let unless_negative = |x: Option<f32>| x.filter(|x| *x >= 0.0);
    Ok(RopeOptions {
        freq_base: positive("--rope-freq-base", a.rope_freq_base.filter(|&x| x != 0.0))?,
        freq_scale: positive(
            "--rope-freq-scale",
            a.rope_freq_scale.or(a.rope_scale.map(|s| 1.0 / s)).filter(|&x| x != 0.0),
        )?,
        scaling,
        yarn_orig_ctx: match a.yarn_orig_ctx {
            None | Some(0) => None,
            Some(n) => Some(size("--yarn-orig-ctx", n)?),
        },
        yarn_ext_factor: unless_negative(a.yarn_ext_factor),
        yarn_attn_factor: unless_negative(a.yarn_attn_factor),
        yarn_beta_slow: unless_negative(a.yarn_beta_slow),
        yarn_beta_fast: unless_negative(a.yarn_beta_fast),
    })
}
