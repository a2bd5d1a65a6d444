//! One timeline on a model: its tokens, KV cache and last logits.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ggml::{ComputeError, Executor, F16, NodeTime};

use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::model::{CacheParams, Compact, KvCache, Model, Pass, Shape, Slots, hadamard};
use crate::prompt_cache::{self, Found, Origin};
use crate::prune::plan::{self, Block, Dims};
use crate::prune::record::{Record, Summary};
use crate::prune::{BlockSlots, Masks, Mode, Observed, Pruning, probe};
use crate::system::memory;
use crate::tokenizer::Token;

/// Cells are counted in steps, so that a graph serves many tokens (as llama.cpp).
const KV_STEP: usize = 256;

/// Tokens of an answer that are looked at again, so that masks follow it.
const REFRESH: usize = 64;

/// Context that is tried first when the user names none and memory is short.
const LEAST_CTX: usize = 512;

/// Tokens, KV cache and logits of one text that grows.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    // Before the cache: the executor's graph refers to it.
    executor: Executor,
    cache: KvCache,
    /// What the executor's graph is, and its slots.
    current: Option<(Task, Slots)>,
    n_ctx: usize,
    n_ubatch: usize,
    n_threads: usize,
    n_threads_batch: usize,
    tokens: Vec<Token>,
    logits: Vec<f32>,
    prune: Option<Prune>,
    /// Tokens that will be decoded at most.
    expected: usize,
    /// What the last prompt took.
    prompt: PromptTimes,
    /// Micro-batches of prompts so far, if they are traced.
    trace: Option<Vec<TracedBatch>>,
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
    /// The nodes of its graph that compute something
    pub nodes: Vec<NodeTime>,
}

/// What a prompt took beside the products and the attention of its batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptTimes {
    /// Probes: all that runs before it is known what is kept
    pub probe: Duration,
    /// Packing of weights for our own kernels, that of probes aside
    pub pack: Duration,
}

/// Pruning on this timeline.
#[derive(Debug)]
struct Prune {
    pruning: Pruning,
    /// Reduced weights of masks that are fixed: of the method, or of the prompt.
    compact: Option<Compact>,
    /// The masks are the method's: they hold for prompts too.
    is_fixed: bool,
    /// Rows that the frozen masks were chosen by.
    frozen_rows: f64,
    /// Tokens since that ran on them.
    unseen: usize,
    /// Shortest answer that is pruned; not measured yet if there is none.
    answer_break_even: Option<usize>,
    /// Shortest piece that is pruned; not measured yet if there is none.
    min_tokens: Option<usize>,
    /// Batches so far, if they are to be dumped.
    records: Option<Vec<Record>>,
    /// Batches to come, if they are given.
    replay: Option<std::vec::IntoIter<Record>>,
    report: PruneReport,
    /// What the last batch ran on, or the answer does
    kept: Masks,
}

/// What pruning did to the last prompt and the answer after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PruneReport {
    /// Rows that ran ahead
    pub probe_rows: usize,
    /// Tokens that ran on reduced tensors
    pub pruned_tokens: usize,
    /// Tokens that ran whole
    pub dense_tokens: usize,
    /// Tokens from which on pruning pays
    pub break_even: usize,
    /// Share of the blocks' weights that reduced tensors have
    pub kept: f64,
    /// Masks are the same for all batches
    pub is_fixed: bool,
    /// Time that making reduced weights for generation took, and their bytes
    pub frozen: Option<(Duration, u64)>,
    /// The answer ran whole: it was to be shorter than this, from which on reduced weights pay
    pub answer_below: Option<usize>,
}

impl PruneReport {
    /// How the prompt was run, as the statistics say it.
    pub fn line(&self) -> String {
        let n = self.pruned_tokens + self.dense_tokens;
        let kept = format!("kept {:.1}%", 100.0 * self.kept);
        let prompt = match (self.pruned_tokens, self.dense_tokens) {
            (0, _) if self.break_even == usize::MAX => {
                "dense: pruning does not pay for prompts of this model here".into()
            }
            (0, _) => format!("dense: prompt below break-even ({} tokens)", self.break_even),
            _ if self.is_fixed => format!("fixed masks, {kept}"),
            _ if self.probe_rows == 0 => format!("given masks, {kept}"),
            (_, 0) => format!("probe {} of {n} tokens, {kept}", self.probe_rows),
            (p, d) => format!("probe {} of {p} tokens, {kept}; {d} tokens dense", self.probe_rows),
        };
        match self.frozen {
            _ if self.answer_below == Some(usize::MAX) => format!("{prompt}; answer dense: pruning does not pay here"),
            _ if let Some(n) = self.answer_below => format!("{prompt}; answer dense: below break-even ({n} tokens)"),
            Some((time, bytes)) if !self.is_fixed => format!(
                "{prompt}; answer on {} of reduced weights made in {:.2} s",
                memory::human(bytes),
                time.as_secs_f64()
            ),
            _ => prompt,
        }
    }
}

impl PruneReport {
    /// The same in a few words.
    pub fn in_short(&self) -> String {
        let kept = format!("kept {:.1}%", 100.0 * self.kept);
        match (self.pruned_tokens > 0, self.frozen.is_some() || self.is_fixed) {
            (true, _) => kept,
            (false, true) => format!("prompt whole, answer {kept}"),
            (false, false) => "all kept: too short to gain".to_owned(),
        }
    }
}

/// Everything that a graph depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    shape: Shape,
    mode: Option<Mode>,
    /// Note what decoding is frozen by
    observe: bool,
    /// Note energies by position
    positions: bool,
}

/// Moments of the inputs of a block's last matrix over a batch.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Mean of each channel
    pub mean: Vec<f32>,
    /// Mean of squares of each channel
    pub energy: Vec<f32>,
    /// The same by position, `[n_each, n_channels]`; empty unless asked for
    pub positions: Vec<f32>,
}

/// A dump that one run cannot have made.
const UNEQUAL: &str = "the batches of the dump keep different numbers of heads or channels";

/// Rows that the output matrix multiplies at once when texts are scored.
pub const OUTPUT_ROWS: usize = 512;

/// One micro-batch: tokens of sequences 0.. at consecutive positions.
struct Batch<'a> {
    /// Equal-length pieces, one per sequence.
    pieces: &'a [&'a [Token]],
    /// Position of the first token of each piece.
    first: usize,
    /// Positions within a piece whose logits are wanted.
    outputs: std::ops::Range<usize>,
}

impl<'m> Session<'m> {
    /// Reserves all memory that any later call can need: the cache of `n_seq_max` sequences of `n_ctx` tokens and the
    /// intermediate results of the largest micro-batch, with logits for `n_outputs_max` of its tokens. `interrupt` stops a
    /// running computation soon after it is set.
    pub fn new(
        model: &'m Model,
        options: &engine::Options,
        n_seq_max: usize,
        n_outputs_max: usize,
        interrupt: Arc<AtomicBool>,
    ) -> Result<Self> {
        let hparams = model.hparams();
        let (n_threads, n_threads_batch) = (options.n_threads, options.n_threads_batch);
        let mut executor =
            Executor::new(&model.gpus(), n_threads.max(n_threads_batch), model.max_tensors() * 2, interrupt)
                .map_err(failure)?;

        let trained = hparams.n_ctx_train as usize;
        let (mut n_ctx, shrink) = match options.n_ctx {
            None => (trained, true),
            Some(0) => (trained, false),
            Some(n) => (n as usize, false),
        };
        loop {
            let params = CacheParams {
                n_cells: n_ctx.next_multiple_of(KV_STEP),
                n_seq: n_seq_max,
                type_k: options.cache_type_k,
                type_v: options.cache_type_v,
                flash_attn: options.flash_attn,
            };
            if let Some(why) = params.refusal(hparams) {
                return Err(Error::usage(why));
            }
            let n_ubatch = (options.n_ubatch.min(options.n_batch) as usize).clamp(1, n_ctx * n_seq_max);
            match Session::reserve(model, &mut executor, params, n_ubatch, n_seq_max, n_outputs_max) {
                Ok(cache) => {
                    return Ok(Session {
                        model,
                        executor,
                        cache,
                        current: None,
                        n_ctx,
                        n_ubatch,
                        n_threads,
                        n_threads_batch,
                        tokens: Vec::new(),
                        logits: Vec::new(),
                        prune: None,
                        expected: usize::MAX,
                        prompt: PromptTimes::default(),
                        trace: None,
                    });
                }
                Err(e) if e.kind() == Kind::Memory && shrink && n_ctx > LEAST_CTX => n_ctx = (n_ctx / 2).max(LEAST_CTX),
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the memory, or says how much is missing before anything is taken.
    fn reserve(
        model: &Model,
        executor: &mut Executor,
        params: CacheParams,
        n_ubatch: usize,
        n_seq: usize,
        n_outputs_max: usize,
    ) -> Result<KvCache> {
        let advice = "use a smaller -c, -ub, or -ctk q8_0 -ctv q8_0";
        let what = format!("a context of {} tokens", params.n_cells * params.n_seq);
        let cache_bytes = params.bytes(model.hparams());
        memory::require(cache_bytes, &what, advice)?;
        let out_of_memory = |bytes: u64| {
            Error::memory(format!("{what} would take {}, which could not be had: {advice}", memory::human(bytes)))
        };
        let cache = KvCache::new(model.hparams(), params, &model.cache_buffer_types())
            .map_err(|e| out_of_memory(e.bytes as u64))?;
        let n_each = (n_ubatch / n_seq).max(1);
        let n_outputs = n_outputs_max.clamp(1, n_each * n_seq);
        // Scores come from the states of all tokens, generation from the logits of the last of each sequence.
        let logits = n_outputs <= n_seq;
        let shape = Shape { n_seq, n_each, n_kv: params.n_cells, n_outputs, logits, whole: false };
        let worst = model.graph(&cache, shape, None).0;
        let mut compute_bytes = executor.measure(&worst) as u64;
        if !logits {
            let output = model.output_graph(OUTPUT_ROWS.min(n_outputs)).0;
            compute_bytes = compute_bytes.max(executor.measure(&output) as u64);
        }
        memory::require(cache_bytes + compute_bytes, &what, advice)?;
        executor.reserve(&worst).map_err(|_| out_of_memory(cache_bytes + compute_bytes))?;
        Ok(cache)
    }

    /// Context in tokens (per sequence).
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
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
        &self.logits
    }

    /// Makes the cache hold exactly `prompt`: keeps the common prefix and processes the rest (at least the last token, so
    /// that the logits are its). `progress` is told after each micro-batch how many tokens are done and of how many.
    /// Returns the number processed. [`Kind::Malformed`] if the prompt is empty or longer than the context;
    /// [`Kind::Interrupted`] leaves the cache valid with what was done.
    pub fn sync(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        if prompt.is_empty() {
            return Err(Error::malformed("the prompt has no tokens"));
        }
        if prompt.len() > self.n_ctx {
            return Err(Error::malformed(format!(
                "the prompt has {} tokens, but the context holds {}: shorten it or use -c {}",
                prompt.len(),
                self.n_ctx,
                prompt.len().next_multiple_of(KV_STEP)
            )));
        }
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.rewind(common.min(prompt.len() - 1));
        if let Some(prune) = &mut self.prune {
            let PruneReport { break_even, kept, is_fixed, .. } = prune.report;
            prune.report = PruneReport { break_even, kept, is_fixed, ..Default::default() };
        }
        if self.tokens.is_empty() {
            self.begin_text();
        }
        let total = prompt.len() - self.n_past();
        let clock = self.model.clock();
        let now = || [&clock.probe, &clock.pack].map(|t| t.load(Ordering::Relaxed));
        self.prompt = PromptTimes::default();
        while self.n_past() < prompt.len() {
            let start = self.n_past();
            let piece = &prompt[start..prompt.len().min(start + self.n_ubatch)];
            let n_threads = if piece.len() > 1 { self.n_threads_batch } else { self.n_threads };
            let outputs = piece.len() - 1..piece.len();
            let began = Instant::now();
            let mode = self.mode(piece.len())?;
            let how = Run { mode, trace: self.trace.is_some(), ..Run::text(n_threads) };
            let before = now();
            let batch = Batch { pieces: &[piece], first: start, outputs };
            let nodes = self.run(&batch, how)?;
            self.read_logits(&batch, how)?;
            if let Some(trace) = &mut self.trace {
                let (n_tokens, duration) = (piece.len(), began.elapsed());
                trace.push(TracedBatch { first: start, n_tokens, start: began, duration, nodes });
            }
            self.tokens.extend_from_slice(piece);
            let [probe, pack] = now();
            let nanos = |t: i64, since: i64| Duration::from_nanos(u64::try_from(t - since).unwrap_or(0));
            self.prompt.probe += nanos(probe, before[0]);
            self.prompt.pack += nanos(pack, before[1]) / self.n_threads_batch as u32;
            progress(self.n_past() + total - prompt.len(), total);
        }
        Ok(total)
    }

    /// Another text: what was observed of the last one says nothing of it.
    fn begin_text(&mut self) {
        let Some(prune) = &mut self.prune else { return };
        prune.pruning.observed = Observed::default();
        prune.frozen_rows = 0.0;
        prune.unseen = 0;
        if !prune.is_fixed && prune.compact.is_some() {
            // The graph refers to them.
            self.current = None;
            self.executor.unload();
            prune.compact = None;
        }
    }

    /// Writes the first `n_tokens` tokens and their cells to a file ([`prompt_cache`]). [`Kind::Malformed`] if the file that is there is
    /// something else, which is then left alone; [`Kind::CannotCreate`] and [`Kind::Io`] leave an old one as it was.
    ///
    /// # Panics
    /// If there are fewer tokens.
    pub fn save_state(&self, path: &Path, n_tokens: usize) -> Result<()> {
        let cells = |out: &mut dyn std::io::Write| self.cache.save(n_tokens, out);
        prompt_cache::write(path, &self.origin(), &self.tokens[..n_tokens], &cells)
    }

    /// Makes the cache hold what [`Session::save_state`] wrote; what it held before is forgotten. There are no logits before
    /// [`Session::sync`] or [`Session::decode`]. A file that this session cannot use changes nothing; one that is no prompt cache is
    /// [`Kind::Malformed`], what is no file at all [`Kind::CannotCreate`].
    ///
    /// What pruning observed is not in the file: the text is as one that ran before there was any pruning.
    pub fn restore_state(&mut self, path: &Path) -> Result<Found> {
        let Some(map) = prompt_cache::open(path)? else { return Ok(Found::Nothing) };
        let saved = match prompt_cache::parse(&map, &self.origin(), self.n_ctx, self.model.n_vocab()) {
            Ok(saved) => saved,
            Err(why) => return Ok(Found::Unusable(why)),
        };
        self.rewind(0);
        self.begin_text();
        self.cache.restore(saved.tokens.len(), saved.cells);
        self.tokens = saved.tokens;
        self.logits.clear();
        Ok(Found::Restored)
    }

    /// What the cells depend on.
    fn origin(&self) -> Origin {
        Origin::new(self.model, &self.cache, self.prune.as_ref().map(|p| &p.pruning.options))
    }

    /// Appends one token and computes its logits. [`Kind::Malformed`] if the context is full.
    pub fn decode(&mut self, token: Token) -> Result<()> {
        let first = self.n_past();
        if first >= self.n_ctx {
            return Err(Error::malformed(format!("the context of {} tokens is full", self.n_ctx)));
        }
        self.freeze()?;
        let mode = self.prune.as_ref().and_then(|p| p.compact.as_ref()).map(|_| Mode::Fixed);
        let batch = Batch { pieces: &[&[token]], first, outputs: 0..1 };
        let how = Run { mode, ..Run::text(self.n_threads) };
        self.run(&batch, how)?;
        self.read_logits(&batch, how)?;
        self.tokens.push(token);
        if let Some(prune) = &mut self.prune {
            prune.unseen += 1;
        }
        self.expected = self.expected.saturating_sub(1);
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

    /// Prunes from now on, or no longer. `fixed` are masks that hold for all batches, with the mean inputs that stand in for what
    /// they leave out; `replay` are batches to follow; `dump` keeps a record of each.
    pub fn set_pruning(
        &mut self,
        pruning: Option<Pruning>,
        fixed: Option<(Masks, BTreeMap<Block, Vec<f32>>)>,
        replay: Option<Vec<Record>>,
        dump: bool,
    ) -> Result<()> {
        self.current = None;
        self.executor.unload();
        self.prune = None;
        let Some(mut pruning) = pruning else { return Ok(()) };
        let mut fixed = fixed;
        let mut replay = replay.map(Vec::into_iter);
        if let Some(records) = &mut replay {
            let records = records.as_slice();
            let counts = records.iter().flat_map(|r| r.kept.iter().map(|(&b, k)| (b, k.len())));
            pruning.plan.set_counts(counts.collect());
            if let Some(first) = records.first().filter(|r| r.frozen) {
                fixed = Some((first.kept.clone(), BTreeMap::new()));
            }
        }
        let is_fixed = fixed.is_some();
        let mut records = dump.then(Vec::new);
        let kept = fixed.as_ref().map_or_else(Masks::new, |f| f.0.clone());
        let compact = match fixed {
            None => None,
            Some((masks, left_out)) => {
                let compact = Compact::new(self.model, &masks, &left_out, self.n_threads_batch)?;
                if let Some(records) = &mut records {
                    records.push(Record { frozen: true, kept: masks, ..Default::default() });
                }
                Some(compact)
            }
        };
        let min_tokens = if replay.is_some() || pruning.probes_all() { Some(2) } else { pruning.options.min_tokens };
        let report = PruneReport {
            kept: pruning.plan.kept_share(true),
            is_fixed,
            break_even: min_tokens.unwrap_or(0),
            ..Default::default()
        };
        self.prune = Some(Prune {
            pruning,
            compact,
            is_fixed,
            frozen_rows: 0.0,
            unseen: 0,
            answer_break_even: None,
            min_tokens,
            records,
            replay,
            report,
            kept,
        });
        Ok(())
    }

    /// What the last prompt took.
    pub fn prompt_times(&self) -> PromptTimes {
        self.prompt
    }

    /// What pruning did lately.
    pub fn prune_report(&self) -> Option<&PruneReport> {
        self.prune.as_ref().map(|p| &p.report)
    }

    /// What each block runs on at present, with the model's widths; empty if all ran whole so far. `None` without pruning.
    pub fn kept(&self) -> Option<(&Masks, &Dims)> {
        self.prune.as_ref().map(|p| (&p.kept, p.pruning.plan.dims()))
    }

    /// The batches so far, if they are recorded.
    pub fn records(&self) -> Option<&[Record]> {
        self.prune.as_ref()?.records.as_deref()
    }

    /// How a piece of a prompt runs.
    fn mode(&mut self, n: usize) -> Result<Option<Mode>> {
        let Some(prune) = &self.prune else { return Ok(None) };
        if prune.is_fixed {
            return Ok(Some(Mode::Fixed));
        }
        if prune.replay.is_some() {
            return Ok(Some(Mode::Given));
        }
        let min_tokens = match prune.min_tokens {
            // One token has no probe: nothing to measure for.
            _ if n < 2 => return Ok(Some(Mode::Observe)),
            Some(n) => n,
            None => {
                let n = self.break_even()?;
                let prune = self.prune.as_mut().expect("checked above");
                (prune.min_tokens, prune.report.break_even) = (Some(n), n);
                n
            }
        };
        Ok(Some(if n >= min_tokens { Mode::Probe } else { Mode::Observe }))
    }

    /// The MLPs that are pruned.
    fn pruned_mlps(&self) -> Vec<Block> {
        let Some(prune) = &self.prune else { return Vec::new() };
        let plan = &prune.pruning.plan;
        plan.blocks().filter(|&b| b.kind == plan::Kind::Mlp && plan.kept(b).is_some()).collect()
    }

    /// Measures from how many tokens of a prompt on pruning pays: one MLP of this model, whole and pruned, with few and with more
    /// tokens; between them time is a line. `usize::MAX` if it never pays.
    fn break_even(&mut self) -> Result<usize> {
        // So many that the usual probe of them, a tenth, runs as that of a long prompt does.
        const FEW: usize = 96;
        const MORE: usize = 192;
        let Some(&block) = self.pruned_mlps().first() else { return Ok(usize::MAX) };
        let mut times = [[0.0f64; 2]; 2];
        for (i, n) in [FEW, MORE].into_iter().enumerate() {
            // The dense run is observed, as it would be.
            for (j, mode) in [Mode::Observe, Mode::Probe].into_iter().enumerate() {
                times[i][j] = self.time_mlp(block, n, mode, true, None)?;
            }
        }
        let slope = |j: usize| (times[1][j] - times[0][j]) / (MORE - FEW) as f64;
        let fixed = |j: usize| times[0][j] - slope(j) * FEW as f64;
        let saved = slope(0) - slope(1);
        if saved <= 0.0 {
            return Ok(usize::MAX);
        }
        Ok(((fixed(1) - fixed(0)) / saved).ceil().clamp(2.0, 1e9) as usize)
    }

    /// Measures from how many tokens of an answer on reduced weights pay: what making those of a few MLPs takes, and what a token then
    /// saves in one.
    fn answer_break_even(&mut self, masks: &Masks) -> Result<usize> {
        let mut some: Masks = self.pruned_mlps().iter().filter_map(|&b| Some((b, masks.get(&b)?.clone()))).collect();
        while some.len() > 4 {
            some.pop_last();
        }
        let Some((&block, _)) = some.first_key_value() else { return Ok(usize::MAX) };
        let make = || {
            let start = Instant::now();
            let compact = Compact::new(self.model, &some, &BTreeMap::new(), self.n_threads_batch)?;
            Ok::<_, Error>((start.elapsed().as_secs_f64(), compact))
        };
        // Twice, as memory that is used for the first time may take many times as long.
        let first = make()?.0;
        let (second, compact) = make()?;
        let cost = first.min(second) / some.len() as f64;
        let whole = self.time_mlp(block, 1, Mode::Observe, false, None)?;
        let saved = whole - self.time_mlp(block, 1, Mode::Fixed, false, Some(&compact))?;
        // The graph refers to what ends here.
        self.executor.unload();
        Ok(if saved > 0.0 { (cost / saved).ceil().min(1e9) as usize } else { usize::MAX })
    }

    /// Least time in seconds of a few runs of one layer's MLP with `n` tokens.
    fn time_mlp(
        &mut self,
        block: Block,
        n: usize,
        mode: Mode,
        observe: bool,
        compact: Option<&Compact>,
    ) -> Result<f64> {
        self.current = None;
        let prune = self.prune.as_ref().expect("only with pruning");
        let shape = Shape { n_seq: 1, n_each: n, n_kv: n, n_outputs: n, logits: false, whole: true };
        let pass = Pass { mode, pruning: Some(&prune.pruning), compact, observe, positions: false };
        let (graph, (input, slots)) = self.model.ffn_graph(&self.cache, shape, pass, block.il);
        self.executor.load(graph).map_err(failure)?;
        let states: Vec<f32> = (0..n * self.model.hparams().n_embd).map(|i| (i as f32).sin()).collect();
        let rows = probe::evenly(prune.pruning.probe(1, n), 1, n);
        let n_threads = if n > 1 { self.n_threads_batch } else { self.n_threads };
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            self.executor.set(input, &states);
            // Any position that every history has.
            self.executor.set(slots.pos, &vec![0i32; n]);
            if let Some(slot) = slots.probe_rows {
                self.executor.set(slot, &rows);
            }
            let start = Instant::now();
            self.executor.compute(n_threads).map_err(failure)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// At most so many tokens will be decoded from now on: an answer that is too short for reduced weights runs whole.
    pub fn expect(&mut self, n: usize) {
        self.expected = n;
    }

    /// Makes the reduced weights that answers run on, once the prompt has shown which, if the answer can be so long that they pay:
    /// again only when much more was seen, in prompts or in the answer itself.
    fn freeze(&mut self) -> Result<()> {
        let Some(prune) = self.prune.as_mut().filter(|p| !p.is_fixed) else { return Ok(()) };
        let n_past = self.tokens.len();
        let mut start = Instant::now();
        let masks = if let Some(replay) = &mut prune.replay {
            let looked_back =
                |r: &&Record| !r.frozen && r.kept.is_empty() && r.first.checked_add(r.n_each) == Some(n_past);
            if let Some(record) = replay.as_slice().first().filter(looked_back).cloned() {
                replay.next();
                prune.records.iter_mut().for_each(|r| r.push(record.clone()));
                self.look_back(None)?;
            }
            let prune = self.prune.as_mut().expect("seen above");
            let replay = prune.replay.as_mut().expect("seen above");
            // Where the recorded run made masks, and only there.
            let due = replay.as_slice().first().is_some_and(|r| r.frozen && r.first <= n_past);
            match due.then(|| replay.next()).flatten() {
                Some(record) if record.kept.iter().all(|(&b, k)| prune.pruning.plan.kept(b) == Some(k.len())) => {
                    record.kept
                }
                Some(_) => return Err(Error::malformed(UNEQUAL)),
                None => return Ok(()),
            }
        } else {
            let seen = prune.pruning.observed.n_rows();
            let answered = prune.unseen as f64 >= prune.frozen_rows.max(REFRESH as f64);
            if seen == 0.0 || (prune.compact.is_some() && seen < 1.25 * prune.frozen_rows && !answered) {
                return Ok(());
            }
            let least = match prune.pruning.options.min_tokens.or(prune.answer_break_even) {
                Some(n) => n,
                None => {
                    let Some(masks) = prune.pruning.observed.masks(&prune.pruning.plan) else { return Ok(()) };
                    let n = self.answer_break_even(&masks)?;
                    self.prune.as_mut().expect("seen above").answer_break_even = Some(n);
                    n
                }
            };
            let prune = self.prune.as_mut().expect("seen above");
            if self.expected < least {
                // On what was made before, if there is any.
                prune.report.answer_below = prune.compact.is_none().then_some(least);
                return Ok(());
            }
            if prune.compact.is_some() && answered {
                self.look_back(Some(Mode::Observe))?;
            }
            start = Instant::now();
            let prune = self.prune.as_mut().expect("seen above");
            let Some(masks) = prune.pruning.observed.masks(&prune.pruning.plan) else { return Ok(()) };
            masks
        };
        let prune = self.prune.as_mut().expect("seen above");
        prune.frozen_rows = prune.pruning.observed.n_rows();
        prune.unseen = 0;
        prune.report.answer_below = None;
        // The old ones go first, and the graph that refers to them: both at once may not fit.
        self.current = None;
        self.executor.unload();
        // ggml's threads would wait by spinning, on the cores that make the weights.
        self.executor.pause();
        prune.compact = None;
        let compact = Compact::new(self.model, &masks, &BTreeMap::new(), self.n_threads_batch)?;
        let before = prune.report.frozen.map_or(Duration::ZERO, |f| f.0);
        prune.report.frozen = Some((before + start.elapsed(), compact.n_bytes()));
        prune.compact = Some(compact);
        prune.kept.clone_from(&masks);
        if let Some(records) = &mut prune.records {
            records.push(Record { frozen: true, first: n_past, kept: masks, ..Default::default() });
        }
        Ok(())
    }

    /// Runs the last tokens once more, whole: what they make most use of counts for the masks that come next.
    fn look_back(&mut self, mode: Option<Mode>) -> Result<()> {
        // No more than there is memory for.
        let first = self.tokens.len() - REFRESH.min(self.n_ubatch).min(self.tokens.len());
        let last = self.tokens[first..].to_vec();
        let outputs = last.len() - 1..last.len();
        let how = Run { mode, again: true, ..Run::text(self.n_threads_batch) };
        self.run(&Batch { pieces: &[&last], first, outputs }, how).map(drop)
    }

    /// Tells from another thread which share of the micro-batch that runs is done.
    pub fn batch_progress(&self) -> impl Fn() -> f64 + Send + use<> {
        self.executor.progress()
    }

    /// Lets the worker threads sleep until the next computation, for whoever computes in between.
    pub fn pause(&self) {
        self.executor.pause();
    }

    /// Forgets all tokens from position `n_past` on.
    pub fn rewind(&mut self, n_past: usize) {
        self.tokens.truncate(n_past);
    }

    /// Runs independent sequences of equal length side by side from an empty cache: the states before the output matrix of the
    /// positions `first..`, sequence by sequence, `[n_embd]` each. `prune` says whether [`Session::set_pruning`] applies. The
    /// session's own tokens are forgotten.
    pub fn states(&mut self, seqs: &[&[Token]], first: usize, prune: bool) -> Result<Vec<f32>> {
        let length = self.begin(seqs)?;
        let n_seq = seqs.len();
        let n_embd = self.model.hparams().n_embd;
        let step = (self.n_ubatch / n_seq).max(1);
        let mut states = vec![0.0f32; n_seq * (length - first) * n_embd];
        let mut rows = Vec::new();
        for start in (0..length).step_by(step) {
            let end = length.min(start + step);
            let pieces: Vec<&[Token]> = seqs.iter().map(|s| &s[start..end]).collect();
            let mode = if prune { self.mode(n_seq * (end - start))? } else { None };
            let whole = end - start == length;
            if let Some(prune) = &mut self.prune {
                prune.report.kept = prune.pruning.plan.kept_share(!whole);
            }
            // A graph has at least one output; and a batch that is pruned is pruned as a whole, the last layer included.
            let wanted = first.clamp(start, end);
            let from = if mode.is_some() { start } else { wanted.min(end - 1) };
            let batch = Batch { pieces: &pieces, first: start, outputs: from - start..end - start };
            let run = Run { mode, logits: false, whole, observe: false, ..Run::text(self.n_threads_batch) };
            self.run(&batch, run)?;
            if wanted == end {
                continue;
            }
            let n = end - from;
            rows.resize(n_seq * n * n_embd, 0.0);
            let slot = self.current.as_ref().expect("run leaves a graph").1.result;
            self.executor.get(slot, &mut rows);
            for (seq, rows) in rows.chunks_exact(n * n_embd).enumerate() {
                let at = (seq * (length - first) + wanted - first) * n_embd;
                let new = &rows[(wanted - from) * n_embd..];
                states[at..at + new.len()].copy_from_slice(new);
            }
        }
        Ok(states)
    }

    /// Logits `[n_vocab, n]` of states `[n_embd, n]`; of some [`OUTPUT_ROWS`] at a time, as they are large.
    pub fn outputs(&mut self, states: &[f32]) -> Result<Vec<f32>> {
        let n = states.len() / self.model.hparams().n_embd;
        self.current = None;
        let (graph, (input, output)) = self.model.output_graph(n);
        self.executor.load(graph).map_err(failure)?;
        self.executor.set(input, states);
        self.executor.compute(self.n_threads_batch).map_err(failure)?;
        let mut logits = vec![0.0f32; n * self.model.n_vocab()];
        self.executor.get(output, &mut logits);
        Ok(logits)
    }

    /// Runs sequences side by side, whole, and returns the moments of each block over the batch.
    pub fn moments(&mut self, seqs: &[&[Token]], positions: bool) -> Result<BTreeMap<Block, Moments>> {
        let length = self.begin(seqs)?;
        assert!(seqs.len() * length <= self.n_ubatch, "one micro-batch");
        let batch = Batch { pieces: seqs, first: 0, outputs: 0..length };
        let run = Run { mode: Some(Mode::Calibrate), logits: false, positions, ..Run::text(self.n_threads_batch) };
        self.run(&batch, run)?;
        let slots = &self.current.as_ref().expect("run leaves a graph").1;
        let dims = self.model.dims();
        let moments = |b: &BlockSlots| {
            let n = dims.channels(b.block.kind);
            let mut both = vec![0.0f32; 2 * n];
            self.executor.get(b.moments.expect("noted of every block"), &mut both);
            let mut by_position = vec![0.0f32; if positions { n * length } else { 0 }];
            if let Some(slot) = b.energy {
                self.executor.get(slot, &mut by_position);
            }
            let [mean, energy] = [0, 1].map(|i| both.iter().skip(i).step_by(2).copied().collect());
            (b.block, Moments { mean, energy, positions: by_position })
        };
        Ok(slots.blocks.iter().map(moments).collect())
    }

    /// Appends one token to each of several texts that grow in step, at position `pos`: logits `[n_vocab]` of each.
    pub fn step(&mut self, tokens: &[Token], pos: usize) -> Result<Vec<f32>> {
        self.tokens.clear();
        let pieces: Vec<&[Token]> = tokens.chunks(1).collect();
        self.run(&Batch { pieces: &pieces, first: pos, outputs: 0..1 }, Run::text(self.n_threads_batch))?;
        let mut logits = vec![0.0f32; tokens.len() * self.model.n_vocab()];
        self.executor.get(self.current.as_ref().expect("run leaves a graph").1.result, &mut logits);
        Ok(logits)
    }

    /// Checks sequences that are to run side by side from the start; their length.
    fn begin(&mut self, seqs: &[&[Token]]) -> Result<usize> {
        let length = seqs.first().map_or(0, |s| s.len());
        assert!(
            length > 0 && seqs.len() <= self.cache.params().n_seq && seqs.iter().all(|s| s.len() == length),
            "equal sequences that fit"
        );
        if length > self.n_ctx {
            return Err(Error::malformed(format!("{length} tokens do not fit in a context of {}", self.n_ctx)));
        }
        self.tokens.clear();
        Ok(length)
    }

    /// The logits of the batch that was just computed. [`Kind::Malformed`] if no token can be drawn from them, with the first place
    /// where numbers went wrong.
    fn read_logits(&mut self, batch: &Batch, how: Run) -> Result<()> {
        self.logits.resize(self.model.n_vocab(), 0.0);
        let slot = self.current.as_ref().expect("run leaves a graph").1.result;
        self.executor.get(slot, &mut self.logits);
        // Some models ban tokens by a logit of minus infinity.
        if self.logits.iter().all(|&l| l < f32::INFINITY) && self.logits.iter().any(|l| l.is_finite()) {
            return Ok(());
        }
        // A replay has gone on to the next batch.
        let mode = how.mode.filter(|&m| m != Mode::Given);
        let nodes = self.run(batch, Run { mode, trace: true, ..how })?;
        let place = match nodes.iter().find(|n| !n.finite) {
            Some(node) => match node.name.rsplit_once('-') {
                Some((name, il)) if il.parse::<usize>().is_ok() => format!("first in layer {il} ('{name}')"),
                _ => format!("first in '{}'", node.name),
            },
            None => "in the logits".to_owned(),
        };
        let n_each = batch.pieces[0].len();
        Err(Error::malformed(format!(
            "the model computes NaN or infinity for tokens {} to {}, {place}: the file is damaged, or its numbers are too large",
            batch.first,
            batch.first + n_each - 1
        ))
        .in_file(self.model.gguf().path()))
    }

    /// Computes one micro-batch; the times of its nodes, if it is to be traced.
    fn run(&mut self, batch: &Batch, how: Run) -> Result<Vec<NodeTime>> {
        if self.executor.interrupt().load(Ordering::Relaxed) {
            return Err(failure(ComputeError::Interrupted));
        }
        let n_vocab = self.model.n_vocab();
        let n_seq = batch.pieces.len();
        let n_each = batch.pieces[0].len();
        for &token in batch.pieces.iter().copied().flatten() {
            // ggml's kernel would abort.
            if usize::try_from(token).is_ok_and(|t| t < n_vocab) {
                continue;
            }
            return Err(Error::malformed(format!("token {token} is not in the model's vocabulary of {n_vocab}")));
        }
        let given = match (how.mode, &mut self.prune) {
            (Some(Mode::Given), Some(prune)) => Some(prune.next_given()?),
            _ => None,
        };
        // A batch that ran whole when it was recorded does so again.
        let mode = how.mode.filter(|_| given.as_ref().is_none_or(|g| !g.kept.is_empty()));
        let params = self.cache.params();
        let end = batch.first + n_each;
        let shape = Shape {
            n_seq,
            n_each,
            n_kv: end.next_multiple_of(KV_STEP).min(params.n_cells),
            n_outputs: batch.outputs.len() * n_seq,
            logits: how.logits,
            whole: how.whole,
        };
        self.cache.prepare(shape.n_kv);
        let task = Task { shape, mode, observe: how.observe, positions: how.positions };
        if self.current.as_ref().is_none_or(|c| c.0 != task) {
            self.current = None;
            let pass = mode.map(|mode| Pass {
                mode,
                pruning: self.prune.as_ref().map(|p| &p.pruning).filter(|_| mode != Mode::Calibrate),
                compact: self.prune.as_ref().and_then(|p| p.compact.as_ref()).filter(|_| mode == Mode::Fixed),
                observe: how.observe,
                positions: how.positions,
            });
            let (graph, slots) = self.model.graph(&self.cache, shape, pass);
            self.executor.load(graph).map_err(failure)?;
            self.current = Some((task, slots));
        }
        let slots = &self.current.as_ref().expect("made above").1;

        let tokens: Vec<Token> = batch.pieces.concat();
        let positions: Vec<i32> = (0..n_seq).flat_map(|_| batch.first..end).map(|p| p as i32).collect();
        let cells: Vec<i64> =
            (0..n_seq).flat_map(|s| (batch.first..end).map(move |p| (s * params.n_cells + p) as i64)).collect();
        let out_ids: Vec<i32> =
            (0..n_seq).flat_map(|s| batch.outputs.clone().map(move |i| (s * n_each + i) as i32)).collect();
        let executor = &mut self.executor;
        executor.set(slots.tokens, &tokens);
        executor.set(slots.pos, &positions);
        executor.set(slots.k_ids, &cells);
        executor.set(slots.v_ids, &self.cache.value_ids(&cells));
        executor.set(slots.out_ids, &out_ids);
        // ggml reuses the memory of inputs during a run: constants are set again too.
        for (slot, n) in [(slots.rot_k, self.cache.rot_k), (slots.rot_v, self.cache.rot_v)] {
            if let (Some(slot), Some(n)) = (slot, n) {
                executor.set(slot, &hadamard(n));
            }
        }
        let probe_shape = slots.probe_mask.map(|(_, n)| Shape { n_seq: 1, n_each: n, n_kv: n, ..shape });
        let masks =
            [Some((slots.mask, shape, batch.first)), slots.probe_mask.zip(probe_shape).map(|((m, _), s)| (m, s, 0))];
        for (slot, shape, first) in masks.into_iter().flatten() {
            if params.flash_attn {
                executor.set(slot, &causal_mask(shape, first, F16(0), F16(0xfc00)));
            } else {
                executor.set(slot, &causal_mask(shape, first, 0.0, f32::NEG_INFINITY));
            }
        }
        if let (Some(slot), Some(prune)) = (slots.probe_rows, &self.prune) {
            executor.set(slot, &probe::evenly(prune.pruning.probe(n_seq, n_each), n_seq, n_each));
        }
        if let Some(given) = &given {
            for block in &slots.blocks {
                if let Some(slot) = block.kept {
                    let plan = &self.prune.as_ref().expect("it gave them").pruning.plan;
                    let kept = given.kept.get(&block.block).filter(|k| Some(k.len()) == plan.kept(block.block));
                    let Some(kept) = kept else {
                        return Err(Error::malformed(UNEQUAL));
                    };
                    executor.set(slot, kept);
                }
            }
        }
        let nodes = match how.trace {
            true => executor.compute_traced(how.n_threads),
            false => executor.compute(how.n_threads).map(|()| Vec::new()),
        };
        let nodes = nodes.map_err(failure)?;
        if let (Some(mode), Some(prune)) = (mode.or(how.mode), &mut self.prune) {
            prune.collect(mode, &self.executor, slots, batch, given, how.again);
        }
        Ok(nodes)
    }
}

/// How a micro-batch is computed.
#[derive(Debug, Clone, Copy)]
struct Run {
    mode: Option<Mode>,
    logits: bool,
    whole: bool,
    observe: bool,
    positions: bool,
    trace: bool,
    /// These tokens ran before: no batch of the text's
    again: bool,
    n_threads: usize,
}

impl Run {
    /// A piece of the timeline's text, whole.
    fn text(n_threads: usize) -> Run {
        Run {
            mode: None,
            logits: true,
            whole: false,
            observe: true,
            positions: false,
            trace: false,
            again: false,
            n_threads,
        }
    }
}

impl Prune {
    /// The next batch of a replay.
    fn next_given(&mut self) -> Result<Record> {
        let replay = self.replay.as_mut().expect("a replay gives batches");
        replay.find(|r| !r.frozen).ok_or_else(|| Error::malformed("the dump has fewer batches than this run"))
    }

    /// Takes in what a batch's graph noted.
    fn collect(
        &mut self,
        mode: Mode,
        executor: &Executor,
        slots: &Slots,
        batch: &Batch,
        given: Option<Record>,
        again: bool,
    ) {
        let (n_seq, n_each) = (batch.pieces.len(), batch.pieces[0].len());
        let n_tokens = n_seq * n_each;
        let dims = *self.pruning.plan.dims();
        let mut record = Record { n_seq, n_each, first: batch.first, ..Default::default() };
        for slots in &slots.blocks {
            let block = slots.block;
            if let Some((slot, n)) = slots.observed {
                let mut mean = vec![0.0f32; dims.channels(block.kind)];
                executor.get(slot, &mut mean);
                self.pruning.observed.add(block, n, &mean);
            }
            let (Some(kept_slot), Mode::Probe) = (slots.kept, mode) else { continue };
            let n = self.pruning.plan.kept(block).expect("a block that is pruned");
            let mut kept = vec![0i32; n];
            executor.get(kept_slot, &mut kept);
            if let Some(slot) = slots.energy {
                let rows = if self.pruning.keeps_history() == Some(true) { n_each } else { 1 };
                let mut energy = vec![0.0f32; n * dims.width(block.kind) * rows];
                executor.get(slot, &mut energy);
                self.pruning.update_history(block, batch.first, &kept, &energy);
            }
            self.kept.insert(block, kept.clone());
            if let (Some(slot), true) = (slots.scores, self.records.is_some()) {
                let mut scores = vec![0.0f32; dims.units(block.kind)];
                executor.get(slot, &mut scores);
                record.scores.insert(block, Summary::of(&scores, n));
                record.kept.insert(block, kept);
            }
        }
        if n_tokens == 1 && mode == Mode::Fixed {
            return;
        }
        if let Some(given) = given {
            self.kept.clone_from(&given.kept);
            record.kept = given.kept;
        }
        match mode {
            Mode::Probe => {
                self.report.pruned_tokens += n_tokens;
                self.report.probe_rows += self.pruning.probe(n_seq, n_each).n_rows();
            }
            Mode::Given if record.kept.is_empty() => self.report.dense_tokens += n_tokens,
            Mode::Fixed | Mode::Given => self.report.pruned_tokens += n_tokens,
            Mode::Observe if again => {}
            Mode::Observe | Mode::Calibrate => self.report.dense_tokens += n_tokens,
        }
        if let (Some(records), false) = (&mut self.records, mode == Mode::Fixed) {
            records.push(record);
        }
    }
}

/// `[n_kv, n_each, 1, n_seq]`: `keep` for the cells up to a token's own position, `drop` for the others.
fn causal_mask<T: Copy>(shape: Shape, first: usize, keep: T, drop: T) -> Vec<T> {
    let mut mask = vec![drop; shape.n_kv * shape.n_tokens()];
    for (i, row) in mask.chunks_exact_mut(shape.n_kv).enumerate() {
        row[..=first + i % shape.n_each].fill(keep);
    }
    mask
}

fn failure(e: ComputeError) -> Error {
    match e {
        ComputeError::Interrupted => Error::new(Kind::Interrupted, "interrupted"),
        ComputeError::OutOfMemory => {
            Error::memory("memory for the computation could not be had: use a smaller -c or -ub")
        }
        ComputeError::Failed => Error::failed("a device failed to compute"),
    }
}
