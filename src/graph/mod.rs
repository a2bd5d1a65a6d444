//! Graphs of micro-batches: from tokens to logits, block by block, with the pass in between.
//!
//! - `batch`: the rows of a micro-batch, and what of their arrangement a graph depends on
//! - `builder`: what an architecture builds its layers with; `attention`, `mlp`: the blocks
//! - `matmul`: the one way to a weight
//! - `choice`: where the pass enters
//! - `inputs`: what is set before a graph is computed
//! - `kv_cache`: keys and values that outlive graphs
//! - `ops`: operations of our own
//!
//! This module sees weights and shapes. It knows neither files nor texts, and not what is done with the results.

mod attention;
mod batch;
mod builder;
mod cache_type;
mod choice;
mod experts;
mod inputs;
mod kv_cache;
mod matmul;
mod mlp;
mod ops;
mod per_layer;
mod states;

pub use batch::{Batch, Layout, Pieces, Results, Row};
pub use builder::{GraphBuilder, GraphSlots, Task};
pub use cache_type::CacheType;
pub use inputs::Feed;
pub use kv_cache::{CacheParams, KV_STEP, KvCache};
pub use ops::{Clock, MAX_ROW_TOKENS, attend};
