//! The weights of a model: what they are as plain data, where they lie, how they get there, and which kernel multiplies each.
//!
//! This module reads the tensors of a checked file. It knows no architecture and builds no graph.

mod kernel;
mod loader;
mod matrix;
mod options;
mod packed;
mod placement;
mod tensors;

pub use kernel::{Kernel, by_kernel, format, has_gemv, quantised_types, shares_scales};
pub use kernels::Activation;
pub use loader::{Loaded, Loader};
pub use matrix::Matrix;
pub use options::{GpuOptions, Kernels, Options, Pack};
pub use packed::Panels;
pub use placement::{INPUT, Placement, device_lines};
pub use tensors::{
    Attention, Dims, Experts, Factors, Gating, Head, KeysValues, Layer, LayerDims, Linear, Mlp, Norm, PerLayer,
    PerLayerEmbeddings, Rotary, Stack, Temperature, Vector, Weight, pack_all,
};
