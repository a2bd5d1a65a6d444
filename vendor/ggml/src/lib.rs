//! A safe wrapper over ggml, and over the parts of libllama that pp-run uses.
//!
//! ggml works in five beats: build a graph ([`Graph::build`]), allocate it ([`Schedule::load`]), set its inputs
//! ([`Schedule::set`]), compute ([`Executor::compute`]), get its outputs ([`Schedule::get`]). Tensors that outlive a
//! graph are in a [`Store`]. ggml aborts the process when a precondition fails, so every precondition is checked here
//! first: a violation is a bug of the caller and panics.
mod crash;
mod custom;
mod device;
mod exec;
mod graph;
pub mod llama;
mod map;
mod quantize;
mod sampler;
mod schedule;
mod store;
mod types;

pub use custom::{Division, Op, Part, Parts, Source};
pub use device::{BufferType, Device, Usage};
pub use exec::{ComputeError, Element, Executor, F16, NodeTime};
pub use graph::{Builder, Graph, Rope, Slot, Tensor};
pub use map::{Map, Pages};
pub use quantize::{can_dequantize, can_quantize, dequantize_row, quantize, quantize_row};
pub use sampler::{SamplerChain, SamplerParams};
pub use schedule::Schedule;
pub use store::{AllocError, MAPPED_ALIGNMENT, Place, Specs, Store, TensorId, TensorSpec};
pub use types::Type;
