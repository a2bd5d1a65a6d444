//! A model in memory, with the engine that runs it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ggml::Device;

use super::core::context_needs;
use super::libllama::{self, LlamaSession};
use super::options::Options;
use super::session::Session;
use super::timeline::Timeline;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::model::{self, Model, RunBy};
use crate::prune;
use crate::system::memory::Needs;

/// Bytes of a GPU that are left to others where as many layers go there as fit, as llama.cpp leaves them.
const LEFT_FREE: u64 = 1 << 30;

/// A model in memory.
#[derive(Debug)]
pub enum Loaded {
    /// On graphs of our own
    Own(Box<Model>),
    /// By libllama
    Libllama(libllama::Model),
}

/// How many layers, with the output as one more, fit the GPUs beside the context and beside what others `will` take.
pub fn layers_that_fit(
    gguf: &Arc<Gguf>,
    options: &model::Options,
    context: &Options,
    pruned: &[Option<prune::Options>],
    will: &Needs,
) -> Result<u32> {
    if Device::gpus().is_empty() {
        return Ok(0);
    }
    let with = |n: u32| {
        let mut options = options.clone();
        options.weights.gpu.n_layers = Some(n);
        options
    };
    let fits = |n: u32| {
        let (model, mut needs) = Model::sketch(gguf.clone(), &with(n))?;
        needs.extend(&context_needs(&model, context, pruned)?);
        needs.extend(will);
        let room = |gpu: Device| (gpu.memory().0 as u64).saturating_sub(LEFT_FREE);
        let gpus: Vec<Device> = model.gpus();
        Ok(needs.iter().all(|(device, bytes)| !gpus.contains(&device) || bytes <= room(device)))
    };
    let (all, _) = Model::sketch(gguf.clone(), &with(u32::MAX))?;
    most_that_fit(if all.gpus().is_empty() { 0 } else { all.hparams().n_layer as u32 + 1 }, fits)
}

/// The largest number up to `most` that fits, if all below one that fits do, and 0 does.
fn most_that_fit(most: u32, fits: impl Fn(u32) -> Result<bool>) -> Result<u32> {
    let (mut least, mut most) = (0, most);
    while least < most {
        let middle = most - (most - least) / 2;
        match fits(middle)? {
            true => least = middle,
            false => most = middle - 1,
        }
    }
    Ok(least)
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
    /// Loads a model, as [`Model::load`] does. Where `options` leave it open how many layers go to GPUs, it is as many as fit beside the
    /// context, which may be `pruned` in these ways.
    pub fn load(
        gguf: Arc<Gguf>,
        options: &model::Options,
        context: &Options,
        pruned: &[Option<prune::Options>],
        progress: &mut (dyn FnMut(f32) -> ControlFlow<()> + Send),
    ) -> Result<Loaded> {
        if runs_on_own(&gguf, options.run_by) {
            let mut options = options.clone();
            if options.weights.gpu.n_layers.is_none() {
                options.weights.gpu.n_layers =
                    Some(layers_that_fit(&gguf, &options, context, pruned, &Needs::default())?);
            }
            return Ok(Loaded::Own(Box::new(Model::load(gguf, &options, context.n_threads_batch, progress)?)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_as_fit() {
        for most in 0..20 {
            for fit in 0..=most {
                assert_eq!(most_that_fit(most, |n| Ok(n <= fit)).unwrap(), fit);
            }
        }
        assert!(most_that_fit(3, |_| Err(Error::failed("no"))).is_err());
    }
}
