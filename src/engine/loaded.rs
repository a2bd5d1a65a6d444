//! A model in memory, with the engine that runs it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::libllama::{self, LlamaSession};
use super::options::Options;
use super::session::Session;
use super::timeline::Timeline;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::model::{self, Model, RunBy};

/// A model in memory.
#[derive(Debug)]
pub enum Loaded {
    /// On graphs of our own
    Own(Box<Model>),
    /// By libllama
    Libllama(libllama::Model),
}

/// Whose engine runs a file: ours where the options do not say otherwise and we have a graph for it.
pub fn runs_on_own(gguf: &Gguf, run_by: RunBy) -> bool {
    match run_by {
        RunBy::Auto => model::has_graph(gguf),
        RunBy::Own => true,
        RunBy::Libllama => false,
    }
}

impl Loaded {
    /// Loads a model, as [`Model::load`] does.
    pub fn load(
        gguf: Arc<Gguf>,
        options: &model::Options,
        n_threads: usize,
        progress: &mut (dyn FnMut(f32) -> ControlFlow<()> + Send),
    ) -> Result<Loaded> {
        if runs_on_own(&gguf, options.run_by) {
            return Ok(Loaded::Own(Box::new(Model::load(gguf, options, n_threads, progress)?)));
        }
        libllama::Model::load(gguf, options, progress).map(Loaded::Libllama)
    }

    /// The model, if it runs on graphs of our own.
    pub fn own(&self) -> Option<&Model> {
        match self {
            Loaded::Own(model) => Some(model),
            Loaded::Libllama(_) => None,
        }
    }

    /// The model on graphs of our own, for `what` only these can do. [`crate::error::Kind::Unsupported`] if libllama runs it.
    pub fn require_own(&self, what: &str) -> Result<&Model> {
        self.own().ok_or_else(|| {
            let arch = self.gguf().metadata().architecture();
            let message = format!("{what} needs a graph of pp-run's own, and libllama runs the architecture '{arch}'");
            Error::unsupported(message).in_file(self.gguf().path())
        })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        match self {
            Loaded::Own(model) => model.gguf(),
            Loaded::Libllama(model) => model.gguf(),
        }
    }

    /// Number of tokens in the vocabulary (the width of the logits).
    pub fn n_vocab(&self) -> usize {
        match self {
            Loaded::Own(model) => model.n_vocab(),
            Loaded::Libllama(model) => model.n_vocab(),
        }
    }

    /// Context length of the training.
    pub fn n_ctx_train(&self) -> u32 {
        match self {
            Loaded::Own(model) => model.hparams().n_ctx_train,
            Loaded::Libllama(model) => model.n_ctx_train(),
        }
    }

    /// Whether a context of `n_ctx` tokens is longer than the model's first training had: some models compute otherwise in such a one.
    pub fn is_long(&self, n_ctx: usize) -> bool {
        match self {
            Loaded::Own(model) => model.hparams().rope.is_some_and(|rope| n_ctx > rope.n_ctx_orig as usize),
            Loaded::Libllama(model) => model.is_long(n_ctx),
        }
    }

    /// Whose kernels multiply the layers' matrices, in words: how many of each type.
    pub fn kernels_in_words(&self) -> String {
        self.own().map_or_else(|| "libllama's".to_owned(), Model::kernels_in_words)
    }

    /// The backends in use as llama-bench names them.
    pub fn backend(&self) -> String {
        self.own().map_or_else(|| "libllama".to_owned(), Model::backend)
    }

    /// An empty text on it. `interrupt` stops a running computation soon after it is set.
    pub fn timeline(&self, options: &Options, interrupt: Arc<AtomicBool>) -> Result<Box<dyn Timeline<'_> + '_>> {
        Ok(match self {
            Loaded::Own(model) => Box::new(Session::new(model, options, 1, 1, interrupt)?),
            Loaded::Libllama(model) => Box::new(LlamaSession::new(model, options, interrupt)?),
        })
    }
}
