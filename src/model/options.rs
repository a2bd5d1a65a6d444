//! Which model, and how it is brought into memory.

use std::path::PathBuf;

use crate::gguf::OverrideValue;
use crate::weights;

#[derive(Debug, Clone)]
pub struct Options {
    /// The GGUF file.
    pub path: PathBuf,
    /// Lock the weights in memory.
    pub mlock: bool,
    /// Look for NaN and infinities in the weights before the run.
    pub check_tensors: bool,
    /// Metadata that is replaced before the model is built: keys and their values.
    pub override_kv: Vec<(String, OverrideValue)>,
    pub weights: weights::Options,
    pub rope: RopeOptions,
    /// Whose engine runs it.
    pub run_by: RunBy,
}

/// Whose engine runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunBy {
    /// Ours where we have a graph for the architecture, else libllama's.
    Auto,
    /// Ours.
    Own,
    /// libllama's.
    Libllama,
}

impl Options {
    /// The defaults, for this file.
    pub fn new(path: impl Into<PathBuf>) -> Options {
        Options {
            path: path.into(),
            mlock: false,
            check_tensors: false,
            override_kv: Vec::new(),
            weights: weights::Options::default(),
            rope: RopeOptions::default(),
            run_by: RunBy::Auto,
        }
    }
}

/// RoPE settings that replace the file's; `None` leaves the file's in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeOptions {
    pub freq_base: Option<f32>,
    pub freq_scale: Option<f32>,
    pub scaling: Option<RopeScaling>,
    pub yarn_orig_ctx: Option<u32>,
    pub yarn_ext_factor: Option<f32>,
    pub yarn_attn_factor: Option<f32>,
    pub yarn_beta_slow: Option<f32>,
    pub yarn_beta_fast: Option<f32>,
}

/// How RoPE frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeScaling {
    /// They are not stretched.
    None,
    /// All frequencies are divided by one factor.
    Linear,
    /// YaRN: the factor depends on the frequency.
    Yarn,
}
