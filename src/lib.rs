//! pp-run: runs a quantised GGUF model on its own ggml graphs, in the terminal, offline.
//!
//! The flow, top to bottom; a module uses only what stands below it:
//!
//! ```text
//! main      parse, run, print the error, exit code
//! cli       argv -> every module's own options, resolved and checked
//! commands  one file per command; the only code that writes to stdout
//! log       messages on stderr, progress bars
//! chat      turns, template, line editor, terminal, how answers look, chats on disk
//! eval      questions with choices: what is asked, by whose rules, what came of it
//! generate  tokens out: an answer that is pushed logits, stop rules, UTF-8 stream
//! engine    a model at work: sessions, scores of texts, the policy of pruning, prompt caches
//! model     hyper-parameters, architectures, loading
//! graph     graphs of micro-batches: blocks, the one way to a weight, KV cache
//! prune     the Probe Pruning pass: plan, probe, history, score, select, reduce
//! weights   tensors as plain data, where they lie, which kernel multiplies each
//! gguf      open, check, metadata, tensor table, memory map
//! system    memory, processors and who else uses them, places of files, threads
//! ggml      (vendor) the five beats of ggml, and the parts of libllama that are used
//! kernels   (vendor) our CPU kernels
//! ```
//!
//! `sampler`, `constraint`, `stats`, `tokenizer` and `error` are leaves.
pub mod chat;
pub mod cli;
pub mod commands;
pub mod constraint;
pub mod engine;
pub mod error;
pub mod eval;
pub mod generate;
pub mod gguf;
pub mod graph;
mod log;
pub mod model;
pub mod prune;
pub mod sampler;
mod stats;
mod system;
pub mod tokenizer;
pub mod weights;
