//! The model that drafts answers, where the user names one (`--draft model:FILE`).

use std::cell::{RefCell, RefMut};
use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ggml::Device;
use kernels::Isa;

use super::load::load;
use super::run::Options;
use super::signals::Signals;
use crate::engine::{self, Loaded, Session, context_needs, layers_that_fit};
use crate::error::{Error, Result};
use crate::generate::{Draft, DraftModel};
use crate::gguf::Gguf;
use crate::log::Log;
use crate::model::{self, RopeOptions};
use crate::tokenizer::{Token, Tokenizer};

/// Tokens that one of two models may have more than the other, at the end of its vocabulary: some are padded there, as Qwen2.5's larger ones.
const MAX_PADDING: usize = 512;

/// A step of a small model takes so many times longer than its share of the bytes: the smaller, the longer is what is not reading weights.
/// Measured with 135M beside 7B (tests/bench/README.md, "Drafts").
const COST_BESIDE_BYTES: f64 = 2.0;

/// The model that drafts.
pub struct Drafter<'a> {
    model: &'a Loaded,
    context: engine::Options,
    interrupt: Arc<AtomicBool>,
    /// Tokens that both models have
    n_vocab: usize,
    /// What a token of it costs, in steps of the model that answers
    cost: f64,
    /// Its memory of the text, once the context's size is known
    memory: RefCell<Option<DraftModel<'a>>>,
}

/// Loads the model that is to draft for `model`, if one is named and drafts are of use. [`crate::error::Kind::Usage`] if it has another
/// vocabulary.
pub fn load_draft_model(
    options: &Options,
    model: &Loaded,
    tokenizer: &Tokenizer,
    log: &Log,
    signals: &Signals,
) -> Result<Option<Loaded>> {
    let (path, answers) = match (&options.draft, model.own()) {
        (Some(Draft::Model(path)), Some(answers)) => (path, answers),
        (Some(Draft::Model(_) | Draft::Ngram), None) => {
            log.note("--draft has no effect: libllama writes this model's answers");
            return Ok(None);
        }
        _ => return Ok(None),
    };
    // What is said of the model that answers is not said of this one.
    let mut of_model = model::Options {
        path: path.clone(),
        override_kv: Vec::new(),
        rope: RopeOptions::default(),
        ..options.model.clone()
    };
    let context = engine::Options { n_ctx: None, ..options.context.clone() };
    // The other model's context is made later, and has the first right to the memory of GPUs.
    if of_model.weights.gpu.n_layers.is_none() && !Device::gpus().is_empty() {
        let will = context_needs(answers, &options.context, slice::from_ref(&options.prune))?;
        let n = layers_that_fit(&Arc::new(Gguf::open(path)?), &of_model, &context, &[None], &will)?;
        of_model.weights.gpu.n_layers = Some(n);
    }
    let (drafts, vocabulary) = load(&of_model, &context, &[None], log, signals)?;
    drafts.require_own("--draft")?;
    check_vocabulary(tokenizer, &vocabulary).map_err(|e| e.in_file(path))?;
    if cost(&drafts, model) + Isa::best().cost_of_token() >= 1.0 {
        log.note("--draft has no effect: the model that is to draft is not much smaller than the one that answers");
        return Ok(None);
    }
    Ok(Some(drafts))
}

/// What a step of `drafts` takes, in steps of `answers`.
fn cost(drafts: &Loaded, answers: &Loaded) -> f64 {
    let bytes = |model: &Loaded| model.gguf().n_bytes() as f64;
    COST_BESIDE_BYTES * bytes(drafts) / bytes(answers)
}

/// Whether tokens mean the same in both.
fn check_vocabulary(answers: &Tokenizer, drafts: &Tokenizer) -> Result<()> {
    let n = answers.n_vocab().min(drafts.n_vocab());
    let differs =
        |why: String| Err(Error::usage(format!("--draft: this model's vocabulary is another than that of -m: {why}")));
    if answers.n_vocab().max(drafts.n_vocab()) - n > MAX_PADDING {
        return differs(format!("{} tokens, not {}", drafts.n_vocab(), answers.n_vocab()));
    }
    match (0..n as Token).find(|&t| answers.piece(t, true) != drafts.piece(t, true)) {
        Some(token) => {
            differs(format!("token {token} is '{}', not '{}'", drafts.in_words(token), answers.in_words(token)))
        }
        None => Ok(()),
    }
}

impl<'a> Drafter<'a> {
    /// Drafts by `drafts` for `answers`, computed as those are.
    pub fn new(
        drafts: &'a Loaded,
        answers: &Loaded,
        context: &engine::Options,
        interrupt: Arc<AtomicBool>,
    ) -> Drafter<'a> {
        let cost = cost(drafts, answers);
        let n_vocab = drafts.n_vocab().min(answers.n_vocab());
        Drafter { model: drafts, context: context.clone(), interrupt, n_vocab, cost, memory: RefCell::new(None) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.model.gguf().path()
    }

    /// The model with a memory of `n_ctx` tokens, as the one that answers has. [`crate::error::Kind::Memory`] if there is no room for it.
    pub fn with_context(&self, n_ctx: usize) -> Result<RefMut<'_, DraftModel<'a>>> {
        let mut memory = self.memory.borrow_mut();
        if memory.as_ref().is_none_or(|m| m.n_ctx() != n_ctx) {
            // The old one makes room first.
            *memory = None;
            let options = engine::Options { n_ctx: u32::try_from(n_ctx).ok(), ..self.context.clone() };
            let model = self.model.require_own("--draft")?;
            let session =
                Session::new(model, &options, 1, 1, self.interrupt.clone()).map_err(|e| e.in_file(self.path()))?;
            *memory = Some(DraftModel::new(session, self.n_vocab, self.cost));
        }
        Ok(RefMut::map(memory, |m| m.as_mut().expect("made above")))
    }
}
