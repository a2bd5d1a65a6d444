//! The engine: computes batches of a model, with a cache and the graphs that are loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ggml::{ComputeError, Element, Executor, Graph, NodeTime, Schedule, Slot};
use kernels::MAX_GEMV_TOKENS;

use super::options::Options;
use super::pace::{Pace, Rest};
use super::threads::Fewer;
use crate::error::{Error, Kind, Result};
use crate::graph::{Batch, CacheParams, Clock, Feed, GraphSlots, KV_STEP, KvCache, Layout, Results};
use crate::model::Model;
use crate::prune::{self, Masks, Notes, Pass, PassKind};
use crate::system::memory::{self, Needs};

/// Context that is tried first when the user names none and memory is short.
const LEAST_CTX: usize = 512;

/// Rows that the output matrix multiplies at once when texts are scored: their logits are large.
pub const OUTPUT_ROWS: usize = 512;

/// The error for a dump whose batches keep different numbers of units: no single run writes such a dump.
pub const UNEQUAL: &str = "the batches of the dump keep different numbers of heads or channels";

/// Computes batches of a model.
///
/// Three graphs stay loaded, each with memory of its own: one for batches of many tokens, one for a few, and one for a single token, as
/// prompts, drafts and other tokens of answers take turns.
#[derive(Debug)]
pub struct Engine<'m> {
    /// What it computes
    pub model: &'m Model,
    /// Keys and values of its sequences
    pub cache: KvCache,
    /// How long probes and packing took so far
    pub clock: Arc<Clock>,
    /// Context in tokens, of each sequence
    pub n_ctx: usize,
    /// Tokens of a batch at most
    pub n_ubatch: usize,
    /// Threads for one token, and for more, at the most
    pub n_threads: usize,
    pub n_threads_batch: usize,
    /// Devices and threads
    pub executor: Executor,
    /// How many threads compute of those that may; `None` if all do: with a GPU they wait for it
    pace: Option<Pace>,
    rest: Rest,
    graphs: Graphs,
    /// Which of the graphs was computed last
    last: Size,
}

/// The graphs that are loaded.
#[derive(Debug)]
struct Graphs {
    one: Loaded,
    few: Loaded,
    many: Loaded,
}

/// A loaded graph, and the memory that it is computed in.
#[derive(Debug)]
struct Loaded {
    schedule: Schedule,
    /// What it is; `None` if it is no batch's
    current: Option<(Key, GraphSlots)>,
}

impl Graphs {
    /// None is loaded yet.
    fn new(executor: &Executor) -> Graphs {
        let loaded = || Loaded { schedule: executor.schedule(), current: None };
        Graphs { one: loaded(), few: loaded(), many: loaded() }
    }

    fn of(&self, size: Size) -> &Loaded {
        match size {
            Size::One => &self.one,
            Size::Few => &self.few,
            Size::Many => &self.many,
        }
    }

    fn of_mut(&mut self, size: Size) -> &mut Loaded {
        match size {
            Size::One => &mut self.one,
            Size::Few => &mut self.few,
            Size::Many => &mut self.many,
        }
    }
}

/// Everything that a graph depends on, beside the state of pruning: whoever changes that calls [`Engine::forget_graphs`].
#[derive(Debug, PartialEq, Eq)]
struct Key {
    layout: Layout,
    pass: PassKind,
}

/// Which graph a batch is computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One token
    One,
    /// At most [`MAX_GEMV_TOKENS`] tokens
    Few,
    /// More
    Many,
}

impl Size {
    /// That of a batch of `n_tokens`.
    pub fn of(n_tokens: usize) -> Size {
        match n_tokens {
            1 => Size::One,
            2..=MAX_GEMV_TOKENS => Size::Few,
            _ => Size::Many,
        }
    }
}

impl<'m> Engine<'m> {
    /// Reserves all memory that any later call can need: the cache of `n_seq_max` sequences of `n_ctx` tokens and the
    /// intermediate results of the largest batch, with results for `n_wanted_max` of its tokens. `interrupt` stops a
    /// running computation soon after it is set. [`Kind::Memory`] if that is not there, [`Kind::Usage`] if the model cannot have such a
    /// cache or context.
    pub fn new(
        model: &'m Model,
        options: &Options,
        n_seq_max: usize,
        n_wanted_max: usize,
        interrupt: Arc<AtomicBool>,
    ) -> Result<Engine<'m>> {
        let (n_threads, n_threads_batch) = (options.n_threads, options.n_threads_batch);
        let executor = Executor::new(&model.gpus(), interrupt).map_err(failure)?;
        let most = n_threads.max(n_threads_batch);
        let adapts = options.adapts && most > 1 && model.gpus().is_empty();
        let pace = adapts.then(|| Pace::new(most));
        let rest = Rest::new(options.power);
        let mut graphs = Graphs::new(&executor);
        let clock = Arc::default();

        let trained = model.hparams().n_ctx_train as usize;
        if let Some(n) = options.n_ctx.filter(|&n| n as usize > model.max_ctx()) {
            let most = model.max_ctx();
            return Err(Error::usage(format!(
                "the model has learned {most} positions, and -c asks for {n}: use -c {most}"
            )));
        }
        let (mut n_ctx, shrink) = match options.n_ctx {
            None => (trained, true),
            Some(0) => (trained, false),
            Some(n) => (n as usize, false),
        };
        loop {
            let most = Most::new(options, n_ctx, n_seq_max, n_wanted_max);
            if let Some(why) = most.params.refusal(&model.dims()) {
                return Err(Error::usage(why));
            }
            match reserve(model, &mut graphs, most, &clock) {
                Ok(cache) => {
                    let last = Size::One;
                    return Ok(Engine {
                        model,
                        cache,
                        clock,
                        n_ctx,
                        n_ubatch: most.n_ubatch,
                        n_threads,
                        n_threads_batch,
                        executor,
                        pace,
                        rest,
                        graphs,
                        last,
                    });
                }
                Err(e) if e.kind() == Kind::Memory && shrink && n_ctx > LEAST_CTX => n_ctx = (n_ctx / 2).max(LEAST_CTX),
                Err(e) => return Err(e),
            }
        }
    }

    /// Computes one batch; with `trace` returns when each node was computed. `given` are the units to keep of [`Pass::Given`].
    ///
    /// A probe takes equal pieces only, see [`crate::graph::Pieces`].
    pub fn run(&mut self, batch: &Batch, pass: Pass, given: Option<&Masks>, trace: bool) -> Result<Vec<NodeTime>> {
        if self.executor.interrupt().load(Ordering::Relaxed) {
            return Err(failure(ComputeError::Interrupted));
        }
        let n_vocab = self.model.n_vocab();
        // ggml's kernel would abort.
        if let Some(row) = batch.rows.iter().find(|r| !usize::try_from(r.token).is_ok_and(|t| t < n_vocab)) {
            let message = format!("token {} is not in the model's vocabulary of {n_vocab}", row.token);
            return Err(Error::malformed(message));
        }
        let layout = batch.layout(self.cache.params());
        self.cache.prepare(layout.n_kv);
        let n_threads = if batch.rows.len() > 1 { self.n_threads_batch } else { self.n_threads };
        self.last = Size::of(batch.rows.len());
        let loaded = self.graphs.of_mut(self.last);
        let key = Key { layout, pass: pass.kind() };
        if loaded.current.as_ref().is_none_or(|c| c.0 != key) {
            // The old graph goes first, because the new one takes over its memory.
            loaded.current = None;
            let (graph, slots) = self.model.graph(&self.cache, &key.layout, pass, &self.clock);
            loaded.schedule.load(graph).map_err(failure)?;
            loaded.current = Some((key, slots));
        }
        let (key, slots) = loaded.current.as_ref().expect("loaded above");
        let feed = Feed { batch, layout: &key.layout, cache: &self.cache, given };
        slots.inputs.set(&mut loaded.schedule, feed).map_err(|_| Error::malformed(UNEQUAL))?;
        let divides = slots.divides_by_threads;
        self.step(self.last, n_threads, divides, trace)
    }

    /// Rests if it is time to, and computes a loaded graph: with `asked` threads, or with fewer if others use the processors and the graph does
    /// not divide sums by threads.
    fn step(&mut self, size: Size, asked: usize, divides: bool, trace: bool) -> Result<Vec<NodeTime>> {
        if self.rest.is_due() {
            self.executor.pause();
            self.rest.wait(self.executor.interrupt());
        }
        let mut pace = self.pace.as_mut().filter(|_| !divides);
        let n_threads = match &mut pace {
            Some(pace) => {
                if pace.is_after_pause() {
                    self.executor.pause();
                }
                pace.next(asked)
            }
            None => asked,
        };
        self.executor.start_threads(n_threads).map_err(failure)?;
        if let Some(pace) = &mut pace {
            pace.begin(n_threads);
        }
        let start = Instant::now();
        let schedule = &mut self.graphs.of_mut(size).schedule;
        let nodes = match trace {
            true => self.executor.compute_traced(schedule, n_threads),
            false => self.executor.compute(schedule, n_threads).map(|()| Vec::new()),
        };
        let time = start.elapsed();
        self.rest.after(time);
        if let Some(pace) = &mut pace {
            pace.end(time);
        }
        nodes.map_err(failure)
    }

    /// The threads that were given up to others since this was last asked.
    pub fn take_fewer(&mut self) -> Option<Fewer> {
        self.pace.as_mut().and_then(Pace::take_fewer)
    }

    fn last(&self) -> (&Schedule, &GraphSlots) {
        let loaded = self.graphs.of(self.last);
        (&loaded.schedule, &loaded.current.as_ref().expect("a batch was computed").1)
    }

    /// Copies the results of the batch that was computed last: as many floats as `out` has.
    pub fn results(&self, out: &mut [f32]) {
        let (schedule, slots) = self.last();
        schedule.get(slots.result.expect("a batch with results"), out);
    }

    /// In how many parts, each on one device, that batch was computed.
    pub fn n_parts(&self) -> usize {
        self.last().0.n_splits()
    }

    /// What that batch noted about blocks.
    pub fn notes(&self) -> &[Notes] {
        &self.last().1.notes
    }

    /// Copies something that it noted.
    pub fn noted<T: Element>(&self, slot: Slot, out: &mut [T]) {
        self.last().0.get(slot, out);
    }

    /// Unloads all graphs: for whoever changes what they refer to, or wants its memory back.
    pub fn forget_graphs(&mut self) {
        for size in [Size::One, Size::Few, Size::Many] {
            let loaded = self.graphs.of_mut(size);
            loaded.current = None;
            loaded.schedule.unload();
        }
    }

    /// Loads a graph that belongs to no batch; that of a batch which it replaces is built again when it is needed. For [`Engine::set_loaded`] and [`Engine::compute`].
    pub fn load(&mut self, size: Size, graph: Graph) -> Result<()> {
        let loaded = self.graphs.of_mut(size);
        loaded.current = None;
        loaded.schedule.load(graph).map_err(failure)
    }

    /// Sets the states that such a graph begins with, and its other inputs as for a batch of this layout.
    pub fn set_loaded(
        &mut self,
        size: Size,
        (input, states): (Slot, &[f32]),
        slots: &GraphSlots,
        batch: &Batch,
        layout: &Layout,
    ) -> Result<()> {
        let loaded = self.graphs.of_mut(size);
        loaded.schedule.set(input, states);
        let feed = Feed { batch, layout, cache: &self.cache, given: None };
        slots.inputs.set(&mut loaded.schedule, feed).map_err(|_| Error::malformed(UNEQUAL))
    }

    /// Computes such a graph with `n_threads` threads at most.
    pub fn compute(&mut self, size: Size, n_threads: usize) -> Result<()> {
        self.step(size, n_threads, false, false).map(drop)
    }

    /// Logits `[n_vocab, n]` of states `[n_embd, n]`, by the head that answers have too.
    pub fn logits(&mut self, states: &[f32]) -> Result<Vec<f32>> {
        let n = states.len() / self.model.hparams().n_embd;
        // The other graph stays: it is the one of the batches that the states come from.
        let size = Size::Few;
        let (graph, (input, slots)) = self.model.logits_graph(&self.cache, n, &self.clock);
        self.load(size, graph)?;
        self.graphs.few.schedule.set(input, states);
        self.compute(size, self.n_threads_batch)?;
        let mut logits = vec![0.0f32; n * self.model.n_vocab()];
        self.graphs.few.schedule.get(slots.result.expect("logits"), &mut logits);
        Ok(logits)
    }
}

/// What is computed at once at most: the cache, tokens of a batch, and of these with results.
#[derive(Debug, Clone, Copy)]
struct Most {
    params: CacheParams,
    n_ubatch: usize,
    n_wanted: usize,
}

impl Most {
    /// Of `n_seq_max` sequences with contexts of `n_ctx` tokens.
    fn new(options: &Options, n_ctx: usize, n_seq_max: usize, n_wanted: usize) -> Most {
        let params = CacheParams {
            n_cells: n_ctx.next_multiple_of(KV_STEP),
            n_seq: n_seq_max,
            type_k: options.cache_type_k,
            type_v: options.cache_type_v,
            flash_attn: options.flash_attn,
            exact: options.exact,
        };
        let n_ubatch = (options.n_ubatch.min(options.n_batch) as usize).clamp(1, n_ctx * n_seq_max);
        Most { params, n_ubatch, n_wanted }
    }

    /// The largest graphs of each size, with this cache.
    fn graphs(&self, model: &Model, cache: &KvCache, clock: &Arc<Clock>) -> Largest {
        let CacheParams { n_seq, n_cells, .. } = self.params;
        let n_each = self.n_ubatch.div_ceil(n_seq);
        let n_wanted = self.n_wanted.clamp(1, n_each * n_seq);
        // Scores come from the states of all tokens, generation from the logits of the last of each sequence.
        let results = if n_wanted <= n_seq { Results::Logits } else { Results::States };
        let graph = |layout: &Layout| model.graph(cache, layout, Pass::Dense, clock).0;
        let n_few = MAX_GEMV_TOKENS.min(self.n_ubatch);
        Largest {
            one: graph(&Layout::largest(1, 1, n_cells, 1, Results::Logits)),
            few: graph(&Layout::largest(1, n_few, n_cells, n_few, Results::Logits)),
            head: (results == Results::States).then(|| model.logits_graph(cache, OUTPUT_ROWS.min(n_wanted), clock).0),
            many: graph(&Layout::largest(n_seq, n_each, n_cells, n_wanted, results)),
        }
    }

    /// What the cache takes of each device's memory.
    fn cache_needs(&self, model: &Model) -> Needs {
        let mut needs = Needs::default();
        for (il, bytes) in self.params.bytes(&model.dims()).into_iter().enumerate() {
            needs.add(model.placement().device(il), bytes);
        }
        needs
    }

    /// What all takes of each device's memory. Only for a cache that fits: tensors of more bytes than any memory has cannot be made.
    fn needs(&self, model: &Model, Graphs { one, few, many }: &mut Graphs, clock: &Arc<Clock>) -> Needs {
        let mut needs = self.cache_needs(model);
        let cache = KvCache::sketch(&model.dims(), self.params, &model.cache_buffer_types());
        let largest = self.graphs(model, &cache, clock);
        let mut few_bytes = few.schedule.measure(&largest.few);
        if let Some(head) = &largest.head {
            few_bytes.iter_mut().zip(few.schedule.measure(head)).for_each(|(few, head)| few.1 = few.1.max(head.1));
        }
        let (many, one) = (many.schedule.measure(&largest.many), one.schedule.measure(&largest.one));
        for (device, bytes) in [few_bytes, many, one].concat() {
            needs.add(device, bytes as u64);
        }
        needs
    }
}

/// The graphs that need most memory.
struct Largest {
    one: Graph,
    few: Graph,
    /// Of those with few tokens, too: the output matrix alone, if texts are scored
    head: Option<Graph>,
    many: Graph,
}

/// Takes the memory, or says how much is missing before anything is taken.
fn reserve(model: &Model, graphs: &mut Graphs, most: Most, clock: &Arc<Clock>) -> Result<KvCache> {
    let advice = "use a smaller -c, -ub, or -ctk q8_0 -ctv q8_0";
    let params = most.params;
    let what = format!("a context of {} tokens", params.n_cells * params.n_seq);
    most.cache_needs(model).require(&what, advice)?;
    let needs = most.needs(model, graphs, clock);
    needs.require(&what, advice)?;
    let out_of_memory = || {
        Error::memory(format!("{what} would take {}, which could not be had: {advice}", memory::human(needs.total())))
    };
    let cache = KvCache::new(&model.dims(), params, &model.cache_buffer_types()).map_err(|_| out_of_memory())?;
    let largest = most.graphs(model, &cache, clock);
    let Graphs { one, few, many } = graphs;
    many.schedule.reserve(&largest.many).map_err(|_| out_of_memory())?;
    one.schedule.reserve(&largest.one).map_err(|_| out_of_memory())?;
    few.schedule.reserve(&largest.few).map_err(|_| out_of_memory())?;
    if let Some(head) = &largest.head {
        few.schedule.reserve(head).map_err(|_| out_of_memory())?;
    }
    Ok(cache)
}

/// What an answer's context takes of each device's memory, beside the weights: the one that `options` name, or of 4,096 tokens, as a longer
/// one is for whoever has room for it. If it may be `pruned` in some way, the copies that this makes of weights are part of it.
pub fn context_needs(model: &Model, options: &Options, pruned: &[Option<prune::Options>]) -> Result<Needs> {
    const UNNAMED: u32 = 4096;
    let trained = model.hparams().n_ctx_train;
    let n_ctx = match options.n_ctx {
        None => trained.min(UNNAMED),
        Some(0) => trained,
        Some(n) => n,
    };
    let most = Most::new(options, n_ctx as usize, 1, 1);
    let cache = most.cache_needs(model);
    // What cannot be had at all is refused when the context is made.
    if most.params.refusal(&model.dims()).is_some() || cache.require("", "").is_err() {
        return Ok(cache);
    }
    let executor = Executor::new(&model.gpus(), Arc::default()).map_err(failure)?;
    let mut needs = most.needs(model, &mut Graphs::new(&executor), &Arc::default());
    let copies = |o: &prune::Options| prune::copies(model.layers(), model.placement(), o, n_ctx as usize);
    needs.extend(&pruned.iter().flatten().map(copies).fold(Needs::default(), |a, b| a.or(&b)));
    Ok(needs)
}

/// What a failed computation means to the user.
pub fn failure(e: ComputeError) -> Error {
    match e {
        ComputeError::Interrupted => Error::new(Kind::Interrupted, "interrupted"),
        ComputeError::OutOfMemory => {
            Error::memory("memory for the computation could not be had: use a smaller -c or -ub")
        }
        ComputeError::Failed => Error::failed("a device failed to compute"),
    }
}
