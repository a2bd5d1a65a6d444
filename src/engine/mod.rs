//! A model at work: sessions, which answer, and scores of texts, both on one engine.
//!
//! - `core`: the engine: executor, cache, and the graphs that are loaded
//! - `session`: one timeline of tokens; `score`: texts side by side; `likelihood`: the ends of texts, for questions with choices
//! - `libllama`: timelines of models that we have no graph for; `timeline`: what both kinds have; `loaded`: a model of either kind
//! - `pruning`: the policy, which says what to do next and computes nothing; `measure`: from how many tokens on pruning pays; `report`: what
//!   pruning did
//! - `threads`: how many threads compute while others use the processors, a rule that computes nothing either; `pace`: the machine and the
//!   clock around it, and rests between steps
//! - `guard`: a prompt's own first piece read both ways; `divergence`: how far apart that is
//! - `prompt_cache`: tokens and what a model remembers of them in a file; `prompt_store`: a folder of these, kept without being asked for;
//!   `reuse`: what of them a prompt can take over
//! - `cache_cost`: what a quantised KV cache costs a model
//!
//! This module knows tokens, never text.

mod cache_cost;
mod core;
mod divergence;
mod guard;
pub mod libllama;
mod likelihood;
mod loaded;
mod measure;
mod options;
mod pace;
pub mod prompt_cache;
pub mod prompt_store;
mod pruning;
mod report;
mod reuse;
mod score;
mod session;
mod threads;
mod timeline;

pub use cache_cost::cache_cost;
pub use core::{Engine, OUTPUT_ROWS, context_needs};
pub use divergence::divergences;
pub use libllama::LlamaSession;
pub use likelihood::{Likelihood, Request, normaliser};
pub use loaded::{Loaded, layers_that_fit, runs_on_own};
pub use options::Options;
pub use pruning::READ_WHOLE;
pub use report::Report;
pub use score::{Moments, Next};
pub use session::{PromptTimes, Session, TracedBatch, are_usable};
pub use threads::Fewer;
pub use timeline::Timeline;
