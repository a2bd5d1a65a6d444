//! pp-run: runs a quantised GGUF model on its own ggml graphs, in the terminal, offline.
//!
//! The flow, top to bottom; a module uses only what stands below it (tests/layering.rs):
//!
//! ```text
//! main      parse, run, print the error, exit code
//! cli       arguments -> every module's own options, resolved and checked
//! commands  one file per command; the only code that writes to stdout
//! log       messages on stderr, progress bars
//! chat      turns, template, line editor, terminal, how answers look, chats on disk
//! generate  an answer that is pushed logits: stop rules, UTF-8 stream
//! engine    sizes and threads of a session
//! session   one timeline: tokens, KV cache, last logits
//! prompt_cache  a session's tokens and cells, in a file
//! model     hparams, weights, KV cache, graph
//! graph     what graphs are built of
//! calibration  statistics for the pass, in a file next to the model
//! prune     the Probe Pruning pass: plan, probe, history, score, select, reduce
//! blocks    pure graph functions: norm, qkv, rope, attention, ffn
//! weights   where weights are, and whose kernels multiply them
//! gguf      open, check, metadata, tensor table, memory map
//! system    memory, processors, the terminal's width, where files are
//! ggml      (vendor) the five beats of ggml, and the parts of libllama that are used
//! ```
//!
//! `sampler`, `tokenizer`, `stats` and `error` are leaves.
pub mod blocks;
pub mod calibration;
pub mod chat;
pub mod cli;
pub mod commands;
pub mod engine;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod graph;
mod log;
pub mod model;
pub mod prompt_cache;
pub mod prune;
pub mod sampler;
pub mod session;
mod stats;
mod system;
pub mod tokenizer;
pub mod weights;
