//! Bringing a model and its tokenizer into memory, with progress.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use super::signals::Signals;
use crate::engine::{self, Loaded};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::log::Log;
use crate::model::{self, Model, RopeOptions, check_values};
use crate::prune;
use crate::system::{memory, priority};
use crate::tokenizer::Tokenizer;

/// The values of files up to this size are always checked: that takes less time than loading the tokenizer.
const MAX_CHECKED: u64 = 2 << 30;

/// Waits for a thread and returns its result; a panic of the thread goes on in this one.
fn joined<T>(thread: ScopedJoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
}

/// Opens a file, and loads its weights and its tokenizer at the same time, for a context that may be `pruned` in these ways.
pub fn load(
    model: &model::Options,
    context: &engine::Options,
    pruned: &[Option<prune::Options>],
    log: &Log,
    signals: &Signals,
) -> Result<(Loaded, Tokenizer)> {
    let start = Instant::now();
    if let Some(nice) = context.nice
        && let Err(e) = priority::set_nice(nice)
    {
        log.warn(&format!("--prio has no effect: {e}"));
    }
    let mut gguf = Gguf::open(&model.path)?;
    gguf.override_kv(&model.override_kv)?;
    let gguf = Arc::new(gguf);
    let bar = log.progress("loading", 1000, "");
    let interrupt = signals.interrupt.clone();
    let mut progress = |share: f32| {
        bar.set_position((share * 1000.0) as u64);
        if interrupt.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let (loaded, tokenizer, values) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| Tokenizer::load(&gguf));
        let checks = model.check_tensors || gguf.file_bytes() <= MAX_CHECKED;
        let values = checks.then(|| scope.spawn(|| check_values(&gguf, context.n_threads_batch, &signals.interrupt)));
        let loaded = Loaded::load(gguf.clone(), model, context, pruned, &mut progress);
        let values = values.map_or(Ok(()), joined);
        (loaded, joined(tokenizer), values)
    });
    bar.finish_and_clear();
    if signals.interrupt.load(Ordering::Relaxed) {
        return Err(signals.error());
    }
    let (loaded, tokenizer) = (loaded?, tokenizer?);
    values?;
    if tokenizer.n_vocab() != loaded.n_vocab() {
        let message = format!(
            "tensor 'token_embd.weight' has {} rows, but the tokenizer has {} tokens",
            loaded.n_vocab(),
            tokenizer.n_vocab()
        );
        return Err(Error::malformed(message).in_file(&model.path));
    }
    let own = loaded.own();
    if own.is_none() {
        log.note("by libllama: no pruning, no kernels of our own");
    }
    let architecture = loaded.gguf().metadata().architecture();
    if architecture == "gpt-oss" && context.cache_type_k.is_quantized() {
        log.warn("gpt-oss answers much worse with keys in 8 bits or fewer: use -ctk f16");
    }
    if let [first, others @ ..] = own.map_or(&[][..], Model::ignored) {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        log.warn(&format!("nothing uses the tensor '{first}'{more} of this file"));
    }
    let trained = loaded.n_ctx_train();
    if let Some(n_ctx) = context.n_ctx.filter(|&n| n > trained && model.rope == RopeOptions::default()) {
        log.warn(&format!(
            "the model was trained for {trained} tokens: beyond, of {n_ctx}, it may talk nonsense (see --rope-scaling)"
        ));
    }
    if model.weights.gpu.n_layers.is_some_and(|n| n > 0) && own.is_some_and(|m| m.gpus().is_empty()) {
        log.note("-ngl has no effect: there is no GPU, or this build has no support for it (cargo features cuda, metal, vulkan)");
    }
    if model.mlock && own.is_some_and(|m| !m.lock()) {
        log.warn("the weights cannot be locked in memory (see ulimit -l); they are used unlocked");
    }
    log.trace(&format!(
        "loaded {} ({}) in {:.3} s on {}",
        model.path.display(),
        memory::human(loaded.gguf().n_bytes()),
        start.elapsed().as_secs_f64(),
        loaded.backend()
    ));
    Ok((loaded, tokenizer))
}
