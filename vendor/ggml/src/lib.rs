//! A safe wrapper over ggml, and over the parts of libllama that pp-run uses. All of the program's calls into C and C++ are
//! in this crate.
//!
//! ggml works in five beats: build a graph ([`Graph::build`]), give its tensors memory ([`Schedule::load`]), set its inputs
//! ([`Schedule::set`]), compute it ([`Executor::compute`]), get its outputs ([`Schedule::get`]). Tensors that outlive a graph,
//! such as weights, are in a [`Store`].
//!
//! ggml ends the process when a precondition does not hold, and some of its kernels read or write past a tensor's end instead.
//! Every precondition is therefore checked here first. A violation is a mistake of the calling code, and panics.
//!
//! # Moving to another version of llama-cpp-sys-2
//!
//! The version is pinned in `Cargo.toml`, as the checks are copies of what ggml asserts. Before it is raised:
//!
//! 1. Compare `ggml.c` of both versions: what the functions assert that [`Builder`] calls (`ggml_rope_impl`, `ggml_set_rows`,
//!    `ggml_flash_attn_ext`, ...).
//! 2. Compare the kernels of these operations in `ggml-cpu/ops.cpp`, `ggml-cpu/binary-ops.cpp` and
//!    `ggml_compute_forward_mul_mat` in `ggml-cpu/ggml-cpu.c`: which types they switch over, which strides they assert or
//!    silently assume, and how far they read (rope reads a factor for each pair of a head).
//! 3. Compare `ggml_backend_cpu_device_supports_op` and `extra_buffer_type::supports_op` (`repack.cpp`): what they refuse must
//!    be refused by [`Builder`], as the scheduler asserts that some device computes each node.
//! 4. Compare `ggml-backend.cpp`: that `ggml_backend_sched_split_graph` changes nothing of a graph but the sources of its
//!    nodes, that a scheduler takes as many tensors as it was made for, and which functions of a buffer may be missing.
//! 5. Look up the numbers that are written here as constants: `GGML_MAX_N_THREADS`, `GGML_SCHED_MAX_BACKENDS`, `GGML_MAX_SRC`
//!    (`custom`), the rope modes (`rope`), the layouts of blocks (`Type::is_finite`), the types that were removed (`types.rs`).
//! 6. Check that the custom operation's threads still meet after each node (`custom.rs`), and that the abort callback is still
//!    called once for each node by one thread (`exec.rs`).
//! 7. Compare the messages that `crash.rs` reads, and the fields of `llama_model_params` and `llama_context_params`.
//! 8. Run this crate's tests, and the oracle of the program, with each feature that can be built.
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
pub use sampler::{SamplerChain, SamplerStep};
pub use schedule::Schedule;
pub use store::{AllocError, MAPPED_ALIGNMENT, Place, Specs, Store, TensorId, TensorSpec};
pub use types::Type;
