//! How likelihoods are computed: each way takes the requests of a task piece by piece.

use std::ops::Range;

use serde_json::{Value, json};

use super::asked::Asked;
use super::options::RunOptions;
use crate::commands::pruning;
use crate::commands::signals::Signals;
use crate::engine::{Likelihood, LlamaSession, Loaded, OUTPUT_ROWS, Options as Context, Request, Session};
use crate::error::{Error, Result};
use crate::eval::{PAPER_BATCH, Rules};
use crate::gguf::OverrideValue;
use crate::log::Log;
use crate::prune::{self, Block, BlockKind, HistoryKind};
use crate::tokenizer::Token;

/// Questions at most whose choices run side by side.
const MOST_QUESTIONS: usize = 32;

/// Cells of the questions that run side by side, for each token of a batch (`-b`).
const CELLS_PER_TOKEN: usize = 4;

/// A way.
pub enum Way<'m> {
    /// On all weights: questions side by side, each context once
    Shared(Session<'m>),
    /// Pruned: rows of a context and a choice side by side, filled up to the longest
    Rows(Session<'m>, Rules),
    /// Contexts are read as prompts are, and choices run on all weights
    Read(Session<'m>),
    /// By libllama, one after the other
    Libllama(LlamaSession<'m>),
}

impl<'m> Way<'m> {
    /// The way of a run, for the requests of a task.
    pub fn new(
        options: &RunOptions,
        prune: Option<&prune::Options>,
        loaded: &'m Loaded,
        asked: &Asked,
        log: &Log,
        signals: &Signals,
    ) -> Result<Way<'m>> {
        let longest = asked.requests.iter().map(|r| r.tokens.len()).max().unwrap_or(1);
        let context = Context { n_ctx: Some(u32::try_from(longest).unwrap_or(u32::MAX)), ..options.context.clone() };
        let interrupt = || signals.interrupt.clone();
        let model = match loaded {
            Loaded::Own(model) => model,
            Loaded::Libllama(_) if prune.is_some() || options.read => {
                return Err(Error::unsupported("by libllama: nothing can be pruned without a graph of pp-run's own"));
            }
            Loaded::Libllama(model) => return Ok(Way::Libllama(LlamaSession::new(model, &context, interrupt())?)),
        };
        let n_threads = context.n_threads_batch;
        if options.read {
            let mut session = Session::new(model, &context, 1, OUTPUT_ROWS.min(longest), interrupt())?;
            pruning::apply(&mut session, model, prune, n_threads, log)?;
            return Ok(Way::Read(session));
        }
        if prune.is_some() {
            let n_tokens = u32::try_from(PAPER_BATCH * longest).unwrap_or(u32::MAX);
            // One pass prunes all rows together, so all of their tokens are one micro-batch.
            let context = Context { exact: true, n_ubatch: n_tokens, n_batch: n_tokens, ..context };
            let mut session = Session::new(model, &context, PAPER_BATCH, PAPER_BATCH * longest, interrupt())?;
            pruning::apply(&mut session, model, prune, n_threads, log)?;
            return Ok(Way::Rows(session, options.rules));
        }
        let n_seq = (CELLS_PER_TOKEN * context.n_batch as usize / longest).clamp(1, MOST_QUESTIONS);
        // A session for several sequences takes a few tokens of each at the least.
        let context = Context {
            n_ubatch: context.n_ubatch.max(n_seq as u32),
            n_batch: context.n_batch.max(n_seq as u32),
            ..context
        };
        let n_ubatch = context.n_ubatch.min(context.n_batch) as usize;
        Ok(Way::Shared(Session::new(model, &context, n_seq, n_ubatch, interrupt())?))
    }

    /// The pieces, as ranges of requests.
    pub fn units(&self, asked: &Asked) -> Vec<Range<usize>> {
        let ends: Vec<usize> = match self {
            Way::Rows(..) => (PAPER_BATCH..asked.requests.len()).step_by(PAPER_BATCH).collect(),
            Way::Shared(session) => asked.ends().chunks(session.n_seq()).map(|c| c[c.len() - 1]).collect(),
            Way::Read(_) | Way::Libllama(_) => asked.ends().chunks(8).map(|c| c[c.len() - 1]).collect(),
        };
        let last = asked.requests.len();
        let ends = ends.iter().copied().filter(|&end| end < last).chain([last]);
        ends.scan(0, |start, end| Some(std::mem::replace(start, end)..end)).collect()
    }

    /// The likelihoods of a piece.
    pub fn likelihoods(&mut self, asked: &Asked, unit: Range<usize>) -> Result<Vec<Likelihood>> {
        let requests = &asked.requests[unit.clone()];
        match self {
            Way::Shared(session) => {
                let questions = questions(asked, unit);
                Ok(session.likelihoods(&questions)?.into_iter().flatten().collect())
            }
            Way::Rows(session, rules) => rows(session, *rules, requests),
            Way::Read(session) => {
                let read = |question: &[Request]| read(session, question);
                Ok(questions(asked, unit).into_iter().map(read).collect::<Result<Vec<_>>>()?.concat())
            }
            Way::Libllama(session) => requests.iter().map(|r| session.likelihood(r)).collect(),
        }
    }

    fn session(&self) -> Option<&Session<'m>> {
        match self {
            Way::Shared(session) | Way::Rows(session, _) | Way::Read(session) => Some(session),
            Way::Libllama(_) => None,
        }
    }

    /// Whether what is kept depends on all pieces before.
    pub fn has_history(&self) -> bool {
        self.session()
            .and_then(Session::prune_options)
            .is_some_and(|o| o.history != HistoryKind::None && o.momentum < 1.0)
    }

    /// All that likelihoods depend on, beside the questions.
    pub fn identity(&self, options: &RunOptions, loaded: &Loaded) -> Value {
        let (name, n_side_by_side) = match self {
            Way::Shared(session) => ("shared", session.n_seq()),
            Way::Rows(..) => ("rows", PAPER_BATCH),
            Way::Read(_) => ("read", 1),
            Way::Libllama(_) => ("libllama", 1),
        };
        let c = &options.context;
        let changed = |(key, value): &(String, OverrideValue)| match value {
            OverrideValue::Int(n) => json!([key, n]),
            OverrideValue::Float(x) => json!([key, x]),
            OverrideValue::Bool(b) => json!([key, b]),
            OverrideValue::Str(text) => json!([key, text]),
        };
        let rope = loaded.own().and_then(|m| m.hparams().rope);
        let rope = rope.map(|r| [r.freq_base, r.freq_scale, r.ext_factor, r.attn_factor, r.beta_fast, r.beta_slow]);
        let pruning = self.session().and_then(Session::prune_identity).unwrap_or_default();
        json!({
            "model": format!("{:016x}", loaded.gguf().fingerprint()),
            "override_kv": options.model.override_kv.iter().map(changed).collect::<Vec<_>>(),
            "rope": rope,
            "rules": options.rules.name(),
            "way": name,
            "n_side_by_side": n_side_by_side,
            "n_ubatch": c.n_ubatch,
            "n_batch": c.n_batch,
            "cache_k": c.cache_type_k.tensor_type().id(),
            "cache_v": c.cache_type_v.tensor_type().id(),
            "flash_attn": c.flash_attn,
            "kernels": options.model.weights.kernels.name(),
            "n_gpu_layers": options.model.weights.gpu.n_layers,
            "pruning": pruning.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        })
    }

    /// Heads and channels that each layer kept in the last batch, if anything was pruned.
    pub fn kept(&self) -> Option<Vec<[usize; 2]>> {
        let (masks, dims) = self.session()?.kept()?;
        let kept = |il: usize, kind: BlockKind| {
            let block = Block { il, kind };
            masks.get(&block).map_or(block.units(dims), Vec::len)
        };
        Some((0..dims.n_layer()).map(|il| [BlockKind::Attn, BlockKind::Mlp].map(|kind| kept(il, kind))).collect())
    }

    /// What pruning did lately, in words.
    pub fn report(&self) -> Option<String> {
        Some(self.session()?.prune_report()?.line())
    }
}

/// The requests of a piece, question by question.
fn questions(asked: &Asked, unit: Range<usize>) -> Vec<&[Request]> {
    let ends = asked.ends();
    let first = ends.partition_point(|&end| end <= unit.start);
    let those = ends[first..].iter().take_while(|&&end| end <= unit.end);
    those.scan(unit.start, |start, &end| Some(&asked.requests[std::mem::replace(start, end)..end])).collect()
}

/// Rows side by side: the paper reads the last token of each, too.
fn rows(session: &mut Session, rules: Rules, requests: &[Request]) -> Result<Vec<Likelihood>> {
    let inputs: Vec<&[Token]> = requests
        .iter()
        .map(|r| match rules {
            Rules::Paper => &r.tokens[..],
            Rules::LmEval => r.input(),
        })
        .collect();
    let length = inputs.iter().map(|i| i.len()).max().unwrap_or(0);
    let first = requests.iter().map(Request::first).min().unwrap_or(0);
    let states = session.states(&inputs, first, true)?;
    let n_embd = states.len() / (inputs.len() * (length - first)).max(1);
    let rows_of = |(i, r): (usize, &Request)| {
        let row = i * (length - first) + r.first() - first;
        &states[row * n_embd..(row + r.n_scored) * n_embd]
    };
    let states: Vec<&[f32]> = requests.iter().enumerate().map(rows_of).collect();
    session.likelihoods_of_states(requests, &states)
}

/// A question whose contexts are read as prompts are, each once.
fn read(session: &mut Session, question: &[Request]) -> Result<Vec<Likelihood>> {
    let mut all = Vec::new();
    let mut context: Option<(&[Token], Vec<f32>)> = None;
    for request in question {
        let n = request.first() + 1;
        let of_request = &request.tokens[..n];
        if context.as_ref().is_none_or(|c| c.0 != of_request) {
            session.rewind(0);
            session.sync(of_request, &mut |_, _| {})?;
            context = Some((of_request, session.logits().to_vec()));
        }
        let (_, logits) = context.as_ref().expect("read above");
        all.push(session.likelihood_after(logits, request)?);
    }
    Ok(all)
}
