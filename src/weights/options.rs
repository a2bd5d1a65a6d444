//! How weights are brought into memory, and whose kernels multiply them.

/// How the weights are brought into memory.
#[derive(Debug, Clone)]
pub struct Options {
    /// What goes to GPUs.
    pub gpu: GpuOptions,
    /// Copy the weights instead of using the mapped file in place.
    pub no_mmap: bool,
    pub kernels: Kernels,
    pub pack: Pack,
}

impl Default for Options {
    fn default() -> Options {
        Options { gpu: GpuOptions::default(), no_mmap: false, kernels: Kernels::Auto, pack: Pack::Batch }
    }
}

/// Which layers GPUs compute, and which GPUs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuOptions {
    /// Layers on GPUs, counted from the last, the output as one more; `None` = all, or as many as fit where a context is known (see
    /// [`crate::engine::Loaded::load`]).
    pub n_layers: Option<u32>,
    /// Names of the GPUs; `None` = all.
    pub devices: Option<Vec<String>>,
    /// How much of the layers goes to each, in any unit; empty = in proportion to their free memory.
    pub split: Vec<f64>,
    /// The number of the only one to use.
    pub only: Option<usize>,
}

/// Whose kernels multiply weights on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Whichever are known to be faster, by processor and type: see [`super::Kernel`].
    Auto,
    /// ggml's: their results are bit-equal to llama.cpp's.
    Ggml,
    /// Our own, on 8-bit integers.
    Native,
    /// ggml's, and the pass takes the operations that it takes on a GPU: for tests that both forms of its stages compute the same.
    Stock,
}

impl Kernels {
    /// Name in flags and tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernels::Auto => "auto",
            Kernels::Ggml => "ggml",
            Kernels::Native => "native",
            Kernels::Stock => "stock",
        }
    }
}

/// How long weights stay packed for our own kernels' products of many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pack {
    /// Packed anew for each batch, panel by panel: this takes no memory.
    Batch,
    /// Packed once when the model is loaded: this takes 9 bits for each weight.
    Resident,
}
