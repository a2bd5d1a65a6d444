//! Bringing a model and its tokenizer into memory, with progress.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use crate::chat::{Watch, ending_signals};
use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::gguf::Gguf;
use crate::log::Log;
use crate::model::{self, Model, RopeOptions, check_values};
use crate::system::memory;
use crate::tokenizer::Tokenizer;

/// Flags that signals set.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Ctrl-C or SIGTERM: stop what runs.
    pub interrupt: Arc<AtomicBool>,
    /// SIGTERM, or SIGHUP
    pub terminate: Arc<AtomicBool>,
    /// A chat's: Ctrl-C that nobody has heard yet; the next one ends it
    pub impatient: Arc<AtomicBool>,
    /// What ends the process at a second Ctrl-C
    second: signal_hook::SigId,
    exit_code: fn(Kind) -> u8,
}

impl Signals {
    /// Catches Ctrl-C and SIGTERM. A second Ctrl-C while the first has not been heard ends the process.
    pub fn catch(exit_code: fn(Kind) -> u8) -> Result<Signals> {
        use signal_hook::consts::SIGINT;
        use signal_hook::flag;
        let register = || -> std::io::Result<Signals> {
            let (interrupt, terminate, impatient): (Arc<AtomicBool>, Arc<AtomicBool>, _) = Default::default();
            let second = flag::register_conditional_shutdown(
                SIGINT,
                i32::from(exit_code(Kind::Interrupted)),
                interrupt.clone(),
            )?;
            flag::register(SIGINT, interrupt.clone())?;
            for &signal in ending_signals() {
                flag::register(signal, terminate.clone())?;
                flag::register(signal, interrupt.clone())?;
            }
            Ok(Signals { interrupt, terminate, impatient, second, exit_code })
        };
        register().map_err(|e| Error::failed(format!("signals cannot be handled: {e}")))
    }

    /// For a chat, whose terminal must be put right before the process ends.
    pub fn watch(&self) -> Result<Watch> {
        let watch = Watch::start(self.interrupt.clone(), self.impatient.clone(), self.exit_code)?;
        if cfg!(unix) {
            signal_hook::low_level::unregister(self.second);
        }
        Ok(watch)
    }

    /// The error that ends an interrupted run.
    pub fn error(&self) -> Error {
        match self.terminate.load(Ordering::Relaxed) {
            true => Error::new(Kind::Terminated, "terminated"),
            false => Error::new(Kind::Interrupted, "interrupted"),
        }
    }
}

/// Files up to this size have their values looked at without being asked: it takes less time than loading the tokenizer.
const MAX_CHECKED: u64 = 2 << 30;

/// What a thread returned; its panic goes on here.
fn joined<T>(thread: ScopedJoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
}

/// Opens a file, and loads its weights and its tokenizer at the same time.
pub fn load(
    model: &model::Options,
    context: &engine::Options,
    log: &Log,
    signals: &Signals,
) -> Result<(Model, Tokenizer)> {
    let start = Instant::now();
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
        let loaded = Model::load(gguf.clone(), model, context.n_threads_batch, &mut progress);
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
    if let [first, others @ ..] = loaded.ignored() {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        log.warn(&format!("nothing uses the tensor '{first}'{more} of this file"));
    }
    let trained = loaded.hparams().n_ctx_train;
    if let Some(n_ctx) = context.n_ctx.filter(|&n| n > trained && model.rope == RopeOptions::default()) {
        log.warn(&format!(
            "the model was trained for {trained} tokens: beyond, of {n_ctx}, it may talk nonsense (see --rope-scaling)"
        ));
    }
    if model.weights.n_gpu_layers.is_some_and(|n| n > 0) && loaded.gpus().is_empty() {
        log.note("-ngl has no effect: there is no GPU, or this build has no support for it (cargo features cuda, metal, vulkan)");
    }
    if model.mlock && !loaded.lock() {
        log.warn("the weights cannot be locked in memory (see ulimit -l); they are used unlocked");
    }
    log.trace(&format!(
        "loaded {} ({}) in {:.3} s on {}",
        model.path.display(),
        memory::human(loaded.n_bytes()),
        start.elapsed().as_secs_f64(),
        loaded.backend()
    ));
    Ok((loaded, tokenizer))
}
