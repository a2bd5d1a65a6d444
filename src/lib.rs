//! pp-run: runs a quantised GGUF model on its own ggml graphs, in the terminal, offline.
//!
//! The flow, top to bottom; a module uses only what stands below it:
//!
//! ```text
//! main      parse, run, print the error, exit code
//! cli       argv -> Options, resolved and checked
//! commands  one file per command; the only code that writes to stdout
//! chat      turns, template, line editor, terminal, how answers look, chats on disk
//! generate  tokens out: stop rules, UTF-8 stream
//! session   one timeline: tokens, KV cache, last logits
//! prompt_cache  a session's tokens and cells, in a file
//! model     hparams, weights, KV cache, graph
//! prune     the Probe Pruning pass: plan, probe, history, score, select, reduce
//! calibration  statistics for the pass, in a file next to the model
//! blocks    pure graph functions: norm, qkv, rope, attention, ffn
//! gguf      open, check, metadata, tensor table, memory map
//! ggml      (vendor) the five beats of ggml, and the parts of libllama that are used
//! ```
//!
//! `sampler`, `tokenizer`, `stats`, `places` and `error` are leaves.
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
pub mod log;
pub mod model;
pub mod prompt_cache;
pub mod prune;
pub mod sampler;
pub mod session;
pub mod stats;
pub mod system;
pub mod tokenizer;
pub mod weights;
