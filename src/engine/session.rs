//! One timeline on a model: its tokens, their cells in the cache, and the logits after the last one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ggml::NodeTime;
use kernels::{Isa, MAX_GEMV_TOKENS};

use super::core::Engine;
use super::measure;
use super::options::Options;
use super::prompt_cache::{self, Bytes, Found, Origin};
use super::pruning::{AskAnswer, Policy, READ_WHOLE, REFRESH, Ran, Way, is_worth_a_guard, read_whole};
use super::report::{BreakEven, Report};
use super::reuse::Reuse;
use super::threads::Fewer;
use crate::error::{Error, Result};
use crate::graph::{Batch, KV_STEP, MAX_ROW_TOKENS, Results};
use crate::model::Model;
use crate::prune::{
    self, Block, Costs, LeftOut, MaskSource, Masks, Notes, Observed, Pass, Pruning, Record, Reduced, Setup, Summary,
};
use crate::system::places;
use crate::tokenizer::Token;
use crate::weights::Dims;

/// Tokens, KV cache and logits of one text that grows.
#[derive(Debug)]
pub struct Session<'m> {
    pub(super) engine: Engine<'m>,
    pub(super) tokens: Vec<Token>,
    /// `[n_vocab, n]`: after the last token, or after the last token before a draft and after each token of this
    logits: Vec<f32>,
    /// So many tokens at the beginning were computed by the kernels for many tokens
    n_many: usize,
    /// Whether pruning was changed since the first of the tokens was computed: then no identity tells what the cells depend on
    is_mixed: bool,
    pub(super) pruned: Option<Pruned>,
    /// Tokens that will be decoded at most.
    n_expected: usize,
    /// What the last prompt took.
    prompt: PromptTimes,
    /// Micro-batches of prompts so far, if they are traced.
    trace: Option<Vec<TracedBatch>>,
}

/// Pruning on this timeline.
#[derive(Debug)]
pub(super) struct Pruned {
    pub pruning: Pruning,
    pub policy: Policy,
    /// What was measured on the model, for a budget that was made by it
    pub costs: Option<Costs>,
    /// Reduced weights of masks that are fixed, or of the text so far
    reduced: Option<Reduced>,
    /// What the last batch ran on, or the answer does
    kept: Masks,
}

/// When a micro-batch of a prompt was computed.
#[derive(Debug, Clone)]
pub struct TracedBatch {
    /// Position of its first token
    pub first: usize,
    /// Its tokens
    pub n_tokens: usize,
    /// When it began
    pub start: Instant,
    /// How long it took: building the graph and reading the logits included
    pub duration: Duration,
    /// Parts of its graph, each on one device: what lies between two of them is copied
    pub n_parts: usize,
    /// The nodes of its graph that compute something
    pub nodes: Vec<NodeTime>,
}

/// What a prompt took beside the products and the attention of its batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptTimes {
    /// Probes: all that runs before it is known what is kept
    pub probe: Duration,
    /// Packing of weights for our own kernels, that of probes aside, by one thread's share
    pub pack: Duration,
}

impl<'m> Session<'m> {
    /// Texts that one step goes on with at the most, so that its results are those of a step for each.
    pub const SIDE_BY_SIDE: usize = MAX_GEMV_TOKENS;

    /// An empty timeline; the cache has room for `n_seq_max` sequences of the context's length, and a batch for `n_wanted_max` results.
    /// `interrupt` stops a running computation soon after it is set. [`crate::error::Kind::Memory`] if there is not enough of it,
    /// [`crate::error::Kind::Usage`] if the model cannot have such a cache.
    pub fn new(
        model: &'m Model,
        options: &Options,
        n_seq_max: usize,
        n_wanted_max: usize,
        interrupt: Arc<AtomicBool>,
    ) -> Result<Self> {
        Ok(Session {
            engine: Engine::new(model, options, n_seq_max, n_wanted_max, interrupt)?,
            tokens: Vec::new(),
            logits: Vec::new(),
            n_many: 0,
            is_mixed: false,
            pruned: None,
            n_expected: usize::MAX,
            prompt: PromptTimes::default(),
            trace: None,
        })
    }

    /// Context in tokens (per sequence).
    pub fn n_ctx(&self) -> usize {
        self.engine.n_ctx
    }

    /// Sequences that the cache has room for.
    pub fn n_seq(&self) -> usize {
        self.engine.cache.params().n_seq
    }

    /// Bytes of the KV cache.
    pub fn cache_bytes(&self) -> u64 {
        self.engine.cache.params().bytes(&self.engine.model.dims()).into_iter().fold(0, u64::saturating_add)
    }

    /// Tokens of a prompt that are computed at once, at most.
    pub fn n_ubatch(&self) -> usize {
        self.engine.n_ubatch
    }

    /// Tokens in the cache.
    pub fn n_past(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Logits `[n_vocab]` after the last token; empty before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits[self.logits.len().saturating_sub(self.engine.model.n_vocab())..]
    }

    /// Makes the cache hold exactly `prompt`: keeps the common prefix and processes the rest (at least the last token, so
    /// that the logits are its). `progress` is told after each micro-batch how many tokens are done and of how many.
    /// Returns the number processed. [`crate::error::Kind::Malformed`] if the prompt is empty or longer than the context;
    /// [`crate::error::Kind::Interrupted`] leaves the cache valid with what was done.
    pub fn sync(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        self.rewind(in_common(&self.tokens, prompt, self.n_ctx())?);
        if let Some(Pruned { pruning, policy, costs, .. }) = &mut self.pruned {
            policy.begin_prompt(pruning.plan.kept_share(true), expected_kl(pruning, costs.as_ref()));
        }
        if self.tokens.is_empty() {
            self.begin_text();
        }
        let total = prompt.len() - self.n_past();
        self.prompt = PromptTimes::default();
        let asked = self.pruned.as_ref().filter(|p| p.pruning.options.guard.is_some()).map(|p| p.pruning.plan.clone());
        let result = self.read(prompt, &mut |n_past| progress(n_past + total - prompt.len(), total));
        // What the guard found holds for one prompt.
        if let Some(plan) = asked {
            self.replan(plan);
        }
        result.map(|()| total)
    }

    /// The same as [`Session::sync`] in an empty session, bit by bit: of the tokens that `prompt` has in common with those that are there only
    /// so many are kept that this holds.
    pub fn sync_as_whole(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        let common = in_common(&self.tokens, prompt, self.n_ctx())?.min(self.n_many);
        // How a prompt is cut where it is pruned depends on all of it.
        self.rewind(if self.pruned.is_none() { self.reuse().taken(common, prompt.len()) } else { 0 });
        self.sync(prompt, progress)
    }

    /// Processes a prompt from the tokens in the cache on; tells after each piece how many these are.
    fn read(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize)) -> Result<()> {
        let mut is_guarded = self.pruned.as_ref().is_some_and(|p| p.pruning.options.guard.is_some());
        while self.n_past() < prompt.len() {
            let left = &prompt[self.n_past()..];
            let (way, n) = self.way_of_prompt(left.len())?;
            if is_guarded && way == Some(Way::Probe) {
                is_guarded = false;
                if is_worth_a_guard(n, left.len()) {
                    self.guard(left, n)?;
                    progress(self.n_past());
                    continue;
                }
            }
            let dense = match &way {
                Some(Way::Probe) => read_whole(self.n_past(), n, left.len()),
                // A piece that is cut shorter than the recorded batch has not the same tokens at its end.
                Some(Way::Given(record)) if record.n_each == n => record.dense,
                _ => [0; 2],
            };
            self.piece(&left[..n], way, dense, n == left.len())?;
            progress(self.n_past());
        }
        Ok(())
    }

    /// Processes one piece of a prompt, so many tokens at its beginning and its end on all weights: after the last one, logits are wanted.
    pub(super) fn piece(&mut self, piece: &[Token], way: Option<Way>, dense: [usize; 2], is_last: bool) -> Result<()> {
        let first = self.n_past();
        let began = Instant::now();
        let (probe, pack) = (self.engine.clock.probe(), self.engine.clock.pack());
        let (wanted, results) = match is_last {
            true => (piece.len() - 1..piece.len(), Results::Logits),
            false => (0..0, Results::Cells),
        };
        let batch = Batch { dense, ..Batch::of_pieces(&[piece], first, wanted, results) };
        let nodes = self.run(&batch, way.as_ref(), self.trace.is_some())?;
        if let Some(way) = way.as_ref() {
            self.collect(&batch, way, false);
        }
        match is_last {
            true if self.read_logits(1) == 0 => return Err(self.damaged(&batch, way.as_ref())),
            true => {}
            false => self.logits.clear(),
        }
        if let Some(trace) = &mut self.trace {
            let (n_tokens, duration, n_parts) = (piece.len(), began.elapsed(), self.engine.n_parts());
            trace.push(TracedBatch { first, n_tokens, start: began, duration, n_parts, nodes });
        }
        if self.n_many == first && piece.len() > MAX_ROW_TOKENS {
            self.n_many += piece.len();
        }
        self.tokens.extend_from_slice(piece);
        self.prompt.probe += self.engine.clock.probe().saturating_sub(probe);
        self.prompt.pack += self.engine.clock.pack().saturating_sub(pack) / self.engine.n_threads_batch as u32;
        Ok(())
    }

    /// Another text: what was observed of the last one says nothing of it.
    fn begin_text(&mut self) {
        let Some(pruned) = &mut self.pruned else { return };
        pruned.pruning.observed = Observed::default();
        if !pruned.policy.report().is_fixed && pruned.reduced.is_some() {
            // The graphs refer to them.
            self.engine.forget_graphs();
            pruned.reduced = None;
        }
        pruned.policy.begin_text();
    }

    /// Writes the first `n_tokens` tokens and their cells to a file ([`prompt_cache`]). [`crate::error::Kind::Malformed`] if the file that
    /// is there is something else, which is then left alone; [`crate::error::Kind::CannotCreate`] and [`crate::error::Kind::Io`] leave an
    /// old one as it was.
    ///
    /// # Panics
    /// If there are fewer tokens, or if these are [mixed](Session::is_mixed).
    pub fn save_state(&self, path: &Path, n_tokens: usize) -> Result<()> {
        assert!(!self.is_mixed, "a prompt cache says by which pruning all of its cells were computed");
        let cache = &self.engine.cache;
        let cells = Bytes { n: cache.n_bytes(n_tokens), write: &|out| cache.save(n_tokens, out) };
        prompt_cache::write(path, &self.origin(), &self.tokens[..n_tokens], cells)
    }

    /// Makes the cache hold what [`Session::save_state`] wrote; what it held before is forgotten. There are no logits before
    /// [`Session::sync`] or [`Session::decode`]. A file that this session cannot use changes nothing; one that is no prompt cache is
    /// [`crate::error::Kind::Malformed`], what is no file at all [`crate::error::Kind::CannotCreate`].
    ///
    /// What pruning observed is not in the file: the text is as one that ran before there was any pruning.
    pub fn restore_state(&mut self, path: &Path) -> Result<Found> {
        self.restore(path, self.n_ctx(), |_, saved| saved.len())
    }

    /// The same with no more tokens than `prompt` [can take over](Session::in_common): reading it then computes the same bits as without.
    pub fn restore_beginning(&mut self, path: &Path, prompt: &[Token]) -> Result<Found> {
        self.restore(path, usize::MAX, |session, saved| session.in_common(saved, prompt))
    }

    /// Restores as many of the first tokens of a file as `n` says, of at most `most`.
    fn restore(&mut self, path: &Path, most: usize, n: impl Fn(&Self, &[Token]) -> usize) -> Result<Found> {
        let Some(map) = prompt_cache::open(path)? else { return Ok(Found::Nothing) };
        let saved = match prompt_cache::parse(&map, &self.origin(), most, self.engine.model.n_vocab()) {
            Ok(saved) => saved,
            Err(why) => return Ok(Found::Unusable(why)),
        };
        let n = n(self, &saved.tokens);
        self.rewind(0);
        self.begin_text();
        self.engine.cache.restore(n, saved.tokens.len(), saved.memory);
        self.tokens = saved.tokens;
        self.tokens.truncate(n);
        self.logits.clear();
        Ok(Found::Restored)
    }

    /// How many of a text's tokens, which were read from its beginning on, `prompt` can take over.
    pub fn in_common(&self, tokens: &[Token], prompt: &[Token]) -> usize {
        let n = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // A prompt that does not fit is an error later.
        if prompt.len() > self.n_ctx() { 0 } else { self.reuse().taken(n, prompt.len()) }
    }

    /// How many of the tokens of `prompt`, which was read from its beginning on, other prompts can take over.
    pub fn left_to_others(&self, prompt: &[Token]) -> usize {
        let n = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.reuse().left(n, prompt.len())
    }

    fn reuse(&self) -> Reuse {
        let is_own = self.engine.cache.params().flash_attn && self.engine.model.reads_alike();
        Reuse { n_ubatch: self.engine.n_ubatch, reads_alike: is_own }
    }

    /// Bytes of a file of the first `n` tokens.
    pub fn state_bytes(&self, n: usize) -> u64 {
        prompt_cache::file_bytes(&self.origin(), n, self.engine.cache.n_bytes(n))
    }

    /// The tokens of a file whose cells depend on the same as the ones here, no more than the first `most`; nothing else of it is read or
    /// checked.
    pub fn tokens_in(&self, path: &Path, most: usize) -> Option<Vec<Token>> {
        prompt_cache::tokens(path, &self.origin(), most)
    }

    /// What the bits of the cells depend on beside the tokens, as a hash: all that a file says, and what else decides how numbers are rounded.
    pub fn identity(&self) -> u64 {
        let Engine { model, n_ubatch, n_threads_batch, .. } = &self.engine;
        let isa = Isa::best();
        let (kernels, backend) = (model.kernels_in_words(), model.backend());
        let exact = self.engine.cache.params().exact;
        let how = format!("{} | {isa} | {kernels} | {backend} | {n_ubatch} {n_threads_batch} {exact}", places::build());
        prompt_cache::identity(&self.origin(), &how)
    }

    /// Whether tokens were computed with other pruning than is set now.
    pub fn is_mixed(&self) -> bool {
        self.is_mixed
    }

    /// What the cells depend on, unless they are mixed.
    fn origin(&self) -> Origin {
        Origin::of_cells(self.engine.model, &self.engine.cache, self.pruned.as_ref().map(|p| &p.pruning))
    }

    /// Appends one token and computes its logits. [`crate::error::Kind::Malformed`] if the context is full.
    pub fn decode(&mut self, token: Token) -> Result<()> {
        self.decode_draft(token, &[]).map(drop)
    }

    /// Tokens that a draft can have. An answer that is pruned has none: reduced weights are for one token at a time.
    pub fn max_draft(&self) -> usize {
        match self.pruned.as_ref().is_some_and(|p| p.policy.prunes_answers()) {
            true => 0,
            false => MAX_GEMV_TOKENS.min(self.engine.n_ubatch) - 1,
        }
    }

    /// Whether logits of a token and of those after it are the same bits if all are computed in one step.
    pub fn drafts_are_exact(&self) -> bool {
        self.engine.model.is_own_throughout() && self.engine.cache.params().flash_attn
    }

    /// Appends one token and a draft of those after it, and computes the logits of all of them in one step. Returns how many tokens of the
    /// draft were appended: those behind logits from which nothing can be drawn are not. [`crate::error::Kind::Malformed`] if they do not
    /// fit in the context, or if nothing can be drawn after `token` itself.
    pub fn decode_draft(&mut self, token: Token, draft: &[Token]) -> Result<usize> {
        let first = self.n_past();
        if first + draft.len() >= self.n_ctx() {
            return Err(is_full(self.n_ctx()));
        }
        let way = self.way_of_answer()?;
        let tokens = [&[token], draft].concat();
        let batch = Batch::of_pieces(&[&tokens], first, 0..tokens.len(), Results::Logits);
        self.run(&batch, way.as_ref(), false)?;
        let n = self.read_logits(tokens.len());
        if n == 0 {
            return match draft {
                [] => Err(self.damaged(&batch, way.as_ref())),
                // What is wrong is said as if there were no draft.
                _ => self.decode_draft(token, &[]),
            };
        }
        self.tokens.extend_from_slice(&tokens[..n]);
        if let Some(pruned) = &mut self.pruned {
            pruned.policy.learn_decoded();
        }
        self.n_expected = self.n_expected.saturating_sub(1);
        Ok(n - 1)
    }

    /// Logits `[n_vocab]` after the first `n` tokens of the draft that was decoded last.
    pub fn draft_logits(&self, n: usize) -> &[f32] {
        let n_vocab = self.engine.model.n_vocab();
        &self.logits[n * n_vocab..][..n_vocab]
    }

    /// Forgets all but the first `n` tokens of the draft that was decoded last.
    pub fn keep_draft(&mut self, n: usize) {
        let n_vocab = self.engine.model.n_vocab();
        let n_draft = self.logits.len() / n_vocab - 1;
        self.rewind(self.n_past() - (n_draft - n));
        self.logits.truncate((n + 1) * n_vocab);
        self.n_expected = self.n_expected.saturating_sub(n);
    }

    /// Appends some tokens, no more than a micro-batch has, and computes them together. `logits` becomes those after each of them,
    /// `[n_vocab, tokens.len()]`. [`crate::error::Kind::Malformed`] if the context is full.
    pub fn decode_together(&mut self, tokens: &[Token], logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        let mut left = tokens;
        while let [token, draft @ ..] = left {
            let n = self.decode_draft(*token, draft)?;
            logits.extend_from_slice(&self.logits);
            left = &draft[n..];
        }
        Ok(())
    }

    /// Notes from now on when each node of prompts is computed, which slows them somewhat.
    pub fn trace(&mut self) {
        self.trace.get_or_insert_default();
    }

    /// What was noted.
    pub fn traced(&self) -> &[TracedBatch] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Prunes from now on as prepared, or no longer. [`crate::error::Kind::Memory`] if the reduced weights of fixed masks do not fit.
    pub fn set_pruning(&mut self, setup: Option<Setup>) -> Result<()> {
        self.engine.forget_graphs();
        self.n_many = 0;
        let identity = |pruning: Option<&Pruning>| pruning.map(Pruning::identity);
        let before = identity(self.pruned.as_ref().map(|p| &p.pruning));
        let after = identity(setup.as_ref().map(|s| &s.pruning));
        self.is_mixed |= !self.tokens.is_empty() && before != after;
        self.pruned = None;
        let Some(Setup { mut pruning, source, dump, costs }) = setup else { return Ok(()) };
        // Fixed masks are reduced in advance.
        if !matches!(source, MaskSource::Fixed(..)) {
            let model = self.engine.model;
            pruning.reside(model.layers(), model.placement(), self.engine.n_threads_batch)?;
        }
        let share = pruning.plan.kept_share(true);
        let of_answers = pruning.options.answer > 0.0;
        let (mut policy, fixed) = match source {
            MaskSource::Probe => {
                let least = pruning.options.min_tokens;
                let prompts = match (pruning.probes_all(), least) {
                    // The whole batch as the probe saves no time: it shows the best quality, for prompts of any length.
                    (true, _) => BreakEven::From(2),
                    (false, Some(least)) => BreakEven::From(least),
                    (false, None) => {
                        let pays = pruning.plan.break_even(pruning.options.tokens, READ_WHOLE);
                        pays.map_or(BreakEven::Never, BreakEven::From)
                    }
                };
                (Policy::probe(prompts, least, of_answers, share), None)
            }
            MaskSource::Replay(records) => (Policy::replay(records, share), None),
            MaskSource::Fixed(masks, left_out) => (Policy::fixed(of_answers, share), Some((masks, left_out))),
        };
        policy.set_scale(self.engine.model.scale());
        if dump {
            policy.keep_records();
        }
        let (mut reduced, mut kept) = (None, Masks::new());
        if let Some((masks, left_out)) = fixed {
            reduced = Some(self.reduce(&masks, &left_out)?);
            kept.clone_from(&masks);
            policy.learn_fixed(masks);
        }
        self.pruned = Some(Pruned { pruning, policy, costs, reduced, kept });
        Ok(())
    }

    fn reduce(&self, masks: &Masks, left_out: &LeftOut) -> Result<Reduced> {
        let model = self.engine.model;
        Reduced::new(model.layers(), model.placement(), masks, left_out, self.engine.n_threads_batch)
    }

    /// What the last prompt took.
    pub fn prompt_times(&self) -> PromptTimes {
        self.prompt
    }

    /// What pruning did lately.
    pub fn prune_report(&self) -> Option<&Report> {
        self.pruned.as_ref().map(|p| p.policy.report())
    }

    /// How is pruned, with the ratio that was found where that depends on the model; `None` without pruning.
    pub fn prune_options(&self) -> Option<&prune::Options> {
        self.pruned.as_ref().map(|p| &p.pruning.options)
    }

    /// What tells this pruning from any other; `None` without pruning.
    pub fn prune_identity(&self) -> Option<Vec<u8>> {
        self.pruned.as_ref().map(|p| p.pruning.identity().to_vec())
    }

    /// What each block runs on at present, with the model's widths; empty if all ran dense so far. `None` without pruning.
    pub fn kept(&self) -> Option<(&Masks, &Dims)> {
        self.pruned.as_ref().map(|p| (&p.kept, p.pruning.plan.dims()))
    }

    /// The batches so far, if they are recorded.
    pub fn records(&self) -> Option<&[Record]> {
        self.pruned.as_ref()?.policy.records()
    }

    /// How the next piece of a prompt of which `n` tokens are left is to run, and of how many tokens it is; on all weights without pruning.
    fn way_of_prompt(&mut self, n: usize) -> Result<(Option<Way>, usize)> {
        let (n_past, n_ubatch) = (self.n_past(), self.engine.n_ubatch);
        match &mut self.pruned {
            Some(pruned) => pruned.policy.read(n_past, n, n_ubatch).map(|(way, n)| (Some(way), n)),
            None => Ok((None, n.min(n_ubatch))),
        }
    }

    /// How texts side by side are to run, `n_each` tokens of each; `None` without pruning.
    pub(super) fn way_of_texts(&mut self, n_seq: usize, n_each: usize) -> Result<Option<Way>> {
        self.pruned.as_mut().map(|pruned| pruned.policy.score(n_seq, n_each)).transpose()
    }

    /// How the next token of an answer is to run, after what must come before it; `None` without pruning.
    fn way_of_answer(&mut self) -> Result<Option<Way>> {
        loop {
            let n_past = self.n_past();
            let Some(pruned) = &mut self.pruned else { return Ok(None) };
            let Pruned { pruning, policy, .. } = pruned;
            let plan = pruning.answer_plan.as_ref();
            let masks = |pruning: &Pruning| {
                let plan = pruning.answer_plan.as_ref().expect("answers are pruned");
                pruning.observed.masks(plan).expect("something was observed")
            };
            // The context ends an answer too.
            let n_expected = self.n_expected.min(self.engine.n_ctx - n_past);
            match policy.answer(plan, n_past, n_expected, pruning.observed.n_rows())? {
                AskAnswer::Run(way) => return Ok(Some(way)),
                AskAnswer::Measure => {
                    let costs = measure::answer_costs(&mut self.engine, pruning, &masks(pruning))?;
                    policy.learn_answer_times(costs);
                }
                AskAnswer::LookBack => self.look_back()?,
                AskAnswer::Reduce(given) => {
                    let start = Instant::now();
                    let masks = given.unwrap_or_else(|| masks(pruning));
                    self.reduce_for_answer(masks, start)?;
                }
            }
        }
    }

    /// Makes the reduced weights that the answer runs on from now on.
    fn reduce_for_answer(&mut self, masks: Masks, start: Instant) -> Result<()> {
        // The old ones go first, and the graphs that refer to them: both at once may not fit.
        self.engine.forget_graphs();
        // ggml's threads would wait by spinning, on the cores that make the weights.
        self.engine.executor.pause();
        if let Some(pruned) = &mut self.pruned {
            pruned.reduced = None;
        }
        let reduced = self.reduce(&masks, &LeftOut::new())?;
        let n_past = self.n_past();
        if let Some(pruned) = &mut self.pruned {
            let observed = pruned.pruning.observed.n_rows();
            pruned.kept.clone_from(&masks);
            pruned.policy.learn_reduced(n_past, masks, observed, start.elapsed(), reduced.n_bytes());
            pruned.reduced = Some(reduced);
        }
        Ok(())
    }

    /// Runs the last tokens once more, dense: what they make most use of counts for the masks that come next.
    fn look_back(&mut self) -> Result<()> {
        // Memory is reserved for `n_ubatch` rows, so no more are looked at.
        let first = self.n_past() - REFRESH.min(self.engine.n_ubatch).min(self.n_past());
        let last = self.tokens[first..].to_vec();
        let batch = Batch::of_pieces(&[&last], first, last.len() - 1..last.len(), Results::Logits);
        self.run(&batch, Some(&Way::Observe), false)?;
        self.collect(&batch, &Way::Observe, true);
        Ok(())
    }

    /// At most so many tokens will be decoded from now on: an answer that is too short for reduced weights runs dense.
    pub fn expect(&mut self, n: usize) {
        self.n_expected = n;
    }

    /// Tells from another thread which share of the micro-batch that runs is done.
    pub fn batch_progress(&self) -> impl Fn() -> f64 + Send + use<> {
        self.engine.executor.progress()
    }

    /// The threads that were given up since this was last asked, as others used the processors.
    pub fn take_fewer_threads(&mut self) -> Option<Fewer> {
        self.engine.take_fewer()
    }

    /// Lets the worker threads sleep until the next computation, for whoever computes in between.
    pub fn pause(&self) {
        self.engine.executor.pause();
    }

    /// Forgets all tokens from position `n_past` on.
    pub fn rewind(&mut self, n_past: usize) {
        self.tokens.truncate(n_past);
        self.n_many = self.n_many.min(n_past);
        self.is_mixed &= !self.tokens.is_empty();
    }

    /// Computes a batch, in this way if there is pruning.
    pub(super) fn run(&mut self, batch: &Batch, way: Option<&Way>, trace: bool) -> Result<Vec<NodeTime>> {
        let pass = match (&self.pruned, way) {
            (None, _) | (_, None | Some(Way::Dense)) => Pass::Dense,
            (Some(p), Some(Way::Observe)) => Pass::Observe(&p.pruning),
            // States are for scores: no answer follows for which anything is to be observed.
            (Some(p), Some(Way::Probe)) => Pass::Probe {
                pruning: &p.pruning,
                observe: p.pruning.answer_plan.is_some() && batch.results != Results::States,
            },
            // What ran dense when it was recorded does so again.
            (Some(p), Some(Way::Given(record))) if record.kept.is_empty() => match p.pruning.answer_plan {
                Some(_) => Pass::Observe(&p.pruning),
                None => Pass::Dense,
            },
            (Some(p), Some(Way::Given(_))) => Pass::Given(&p.pruning),
            (Some(p), Some(Way::Reduced)) => Pass::Reduced(p.reduced.as_ref().expect("made before they are used")),
        };
        let given = match way {
            Some(Way::Given(record)) => Some(&record.kept),
            _ => None,
        };
        self.engine.run(batch, pass, given, trace)
    }

    /// Takes in what a batch of a text noted.
    pub(super) fn collect(&mut self, batch: &Batch, way: &Way, is_again: bool) {
        let Some(Pruned { pruning, policy, kept, .. }) = &mut self.pruned else { return };
        let (n_seq, n_each) = batch.layout(self.engine.cache.params()).samples();
        let (first, dense) = (batch.rows[0].pos, batch.dense);
        let mut record = Record { n_seq, n_each, first, dense, ..Default::default() };
        for notes in self.engine.notes() {
            if let Some((slot, n)) = notes.observed {
                let mut mean = vec![0.0f32; notes.block.channels(pruning.plan.dims())];
                self.engine.noted(slot, &mut mean);
                pruning.observed.add(notes.block, n, &mean);
            }
            let Some(ids) = read_kept(&self.engine, pruning, notes, record.first, n_each) else { continue };
            kept.insert(notes.block, ids.clone());
            if let (Some(slot), Some(_)) = (notes.scores, policy.records()) {
                let mut scores = vec![0.0f32; notes.block.units(pruning.plan.dims())];
                self.engine.noted(slot, &mut scores);
                record.scores.insert(notes.block, Summary::of(&scores, ids.len()));
                record.kept.insert(notes.block, ids);
            }
        }
        if *way == Way::Probe {
            for block in pruning.plan.dropped() {
                kept.insert(block, Vec::new());
                record.kept.insert(block, Vec::new());
            }
        }
        if let Way::Given(given) = way {
            kept.clone_from(&given.kept);
            record.kept.clone_from(&given.kept);
        }
        let probe_rows = match way {
            Way::Probe => pruning.probe(n_seq, n_each - batch.dense.iter().sum::<usize>()).n_rows(),
            _ => 0,
        };
        policy.learn_batch(Ran { way, probe_rows, is_again, record });
    }

    /// Takes over the logits of the batch that was just computed, of which `n` are wanted. Returns of how many tokens a next one can be
    /// drawn from them, before the first of which it cannot.
    fn read_logits(&mut self, n: usize) -> usize {
        let n_vocab = self.engine.model.n_vocab();
        self.logits.resize(n * n_vocab, 0.0);
        self.engine.results(&mut self.logits);
        let n_usable = self.logits.chunks_exact(n_vocab).take_while(|l| are_usable(l)).count();
        self.logits.truncate(n_usable * n_vocab);
        n_usable
    }

    /// The error where no token can be drawn from the logits of a batch, with the first place where numbers went wrong.
    fn damaged(&mut self, batch: &Batch, way: Option<&Way>) -> Error {
        let nodes = match self.run(batch, way, true) {
            Ok(nodes) => nodes,
            Err(e) => return e,
        };
        let place = match nodes.iter().find(|n| !n.finite) {
            Some(node) => match node.name.rsplit_once('-') {
                Some((name, il)) if il.parse::<usize>().is_ok() => format!("first in layer {il} ('{name}')"),
                _ => format!("first in '{}'", node.name),
            },
            None => "in the logits".to_owned(),
        };
        let (first, last) = (batch.rows[0].pos, batch.rows[batch.rows.len() - 1].pos);
        Error::malformed(format!(
            "the model computes NaN or infinity for tokens {first} to {last}, {place}: the file is damaged, or its numbers are too large"
        ))
        .in_file(self.engine.model.gguf().path())
    }
}

/// Whether tokens can be drawn from logits. Some models ban tokens by a logit of minus infinity.
pub fn are_usable(logits: &[f32]) -> bool {
    logits.iter().all(|&l| l < f32::INFINITY) && logits.iter().any(|l| l.is_finite())
}

/// Tokens that `prompt` has in common with those that are there, its last one aside. [`crate::error::Kind::Malformed`] if it is empty or
/// longer than the context.
pub(super) fn in_common(tokens: &[Token], prompt: &[Token], n_ctx: usize) -> Result<usize> {
    if prompt.is_empty() {
        return Err(Error::malformed("the prompt has no tokens"));
    }
    if prompt.len() > n_ctx {
        return Err(Error::malformed(format!(
            "the prompt has {} tokens, but the context holds {n_ctx}: shorten it or use -c {}",
            prompt.len(),
            prompt.len().next_multiple_of(KV_STEP)
        )));
    }
    let common = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    Ok(common.min(prompt.len() - 1))
}

/// The error where one more token is too many.
pub(super) fn is_full(n_ctx: usize) -> Error {
    Error::malformed(format!("the context of {n_ctx} tokens is full"))
}

/// What reading is expected to cost by what was measured on the model.
fn expected_kl(pruning: &Pruning, costs: Option<&Costs>) -> Option<f64> {
    Some(prune::expected(&costs?.curve, pruning.options.ratio))
}

/// The units that a probe chose for a block, if there was one; the history hears of what they computed.
fn read_kept(engine: &Engine, pruning: &Pruning, notes: &Notes, first: usize, n_each: usize) -> Option<Vec<i32>> {
    let block: Block = notes.block;
    let slot = notes.kept?;
    let n = pruning.plan.kept(block).expect("a block that is pruned");
    let mut kept = vec![0i32; n];
    engine.noted(slot, &mut kept);
    if let Some(slot) = notes.energy {
        let rows = if pruning.keeps_history() == Some(true) { n_each } else { 1 };
        let mut energy = vec![0.0f32; n * block.width(pruning.plan.dims()) * rows];
        engine.noted(slot, &mut energy);
        pruning.update_history(block, first, &kept, &energy);
    }
    Some(kept)
}
