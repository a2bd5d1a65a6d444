//! One timeline on a model: its tokens, KV cache and last logits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ggml::{ComputeError, Executor, F16};

use crate::cli::options::{ContextOptions, Tristate};
use crate::error::{Error, Kind, Result};
use crate::model::{CacheParams, KvCache, Model, Shape, Slots, hadamard, memory};
use crate::tokenizer::Token;

/// Cells are counted in steps, so that a graph serves many tokens (as llama.cpp).
const KV_STEP: usize = 256;

/// Context that is tried first when the user names none and memory is short.
const LEAST_CTX: usize = 512;

/// Tokens, KV cache and logits of one text that grows.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    // Before the cache: the executor's graph refers to it.
    executor: Executor,
    cache: KvCache,
    /// Shape and slots of the executor's graph.
    current: Option<(Shape, Slots)>,
    n_ctx: usize,
    n_ubatch: usize,
    n_threads: usize,
    n_threads_batch: usize,
    tokens: Vec<Token>,
    logits: Vec<f32>,
}

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
        options: &ContextOptions,
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
                // Every backend of ours has it, so that automatic is on.
                flash_attn: options.flash_attn != Tristate::Off,
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
        let worst = model.graph(&cache, Shape { n_seq, n_each, n_kv: params.n_cells, n_outputs }).0;
        let compute_bytes = executor.measure(&worst) as u64;
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
        let total = prompt.len() - self.n_past();
        while self.n_past() < prompt.len() {
            let start = self.n_past();
            let piece = &prompt[start..prompt.len().min(start + self.n_ubatch)];
            let n_threads = if piece.len() > 1 { self.n_threads_batch } else { self.n_threads };
            let outputs = piece.len() - 1..piece.len();
            self.run(&Batch { pieces: &[piece], first: start, outputs }, n_threads)?;
            self.read_logits();
            self.tokens.extend_from_slice(piece);
            progress(self.n_past() + total - prompt.len(), total);
        }
        Ok(total)
    }

    /// Appends one token and computes its logits. [`Kind::Malformed`] if the context is full.
    pub fn decode(&mut self, token: Token) -> Result<()> {
        let first = self.n_past();
        if first >= self.n_ctx {
            return Err(Error::malformed(format!("the context of {} tokens is full", self.n_ctx)));
        }
        self.run(&Batch { pieces: &[&[token]], first, outputs: 0..1 }, self.n_threads)?;
        self.read_logits();
        self.tokens.push(token);
        Ok(())
    }

    /// Lets the worker threads sleep until the next computation, for whoever computes in between.
    pub fn pause(&self) {
        self.executor.pause();
    }

    /// Forgets all tokens from position `n_past` on.
    pub fn rewind(&mut self, n_past: usize) {
        self.tokens.truncate(n_past);
    }

    /// Runs independent sequences of equal length side by side from an empty cache, and hands out the logits of positions
    /// `first..`: `each(sequence, position, rows)` with rows `[n_vocab]` of consecutive positions from `position` on, a
    /// micro-batch at a time. The session's own tokens are forgotten.
    pub fn score(&mut self, seqs: &[&[Token]], first: usize, each: &mut dyn FnMut(usize, usize, &[f32])) -> Result<()> {
        let n_seq = seqs.len();
        let length = seqs.first().map_or(0, |s| s.len());
        assert!(
            n_seq <= self.cache.params().n_seq && seqs.iter().all(|s| s.len() == length),
            "equal sequences that fit"
        );
        if length > self.n_ctx {
            return Err(Error::malformed(format!("{length} tokens do not fit in a context of {}", self.n_ctx)));
        }
        self.tokens.clear();
        let n_vocab = self.model.n_vocab();
        let step = (self.n_ubatch / n_seq.max(1)).max(1);
        let mut rows = vec![0.0f32; 0];
        for start in (0..length).step_by(step) {
            let end = length.min(start + step);
            let pieces: Vec<&[Token]> = seqs.iter().map(|s| &s[start..end]).collect();
            let wanted = first.clamp(start, end);
            // A graph has at least one output.
            let outputs = wanted.min(end - 1) - start..end - start;
            let n_each = outputs.len();
            self.run(&Batch { pieces: &pieces, first: start, outputs }, self.n_threads_batch)?;
            if wanted == end {
                continue;
            }
            rows.resize(n_seq * n_each * n_vocab, 0.0);
            let slots = self.current.as_ref().expect("run leaves a graph").1;
            self.executor.get(slots.logits, &mut rows);
            for (seq, rows) in rows.chunks_exact(n_each * n_vocab).enumerate() {
                each(seq, wanted, rows);
            }
        }
        Ok(())
    }

    fn read_logits(&mut self) {
        self.logits.resize(self.model.n_vocab(), 0.0);
        let slots = self.current.as_ref().expect("run leaves a graph").1;
        self.executor.get(slots.logits, &mut self.logits);
    }

    /// Computes one micro-batch.
    fn run(&mut self, batch: &Batch, n_threads: usize) -> Result<()> {
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
        let params = self.cache.params();
        let end = batch.first + n_each;
        let shape = Shape {
            n_seq,
            n_each,
            n_kv: end.next_multiple_of(KV_STEP).min(params.n_cells),
            n_outputs: batch.outputs.len() * n_seq,
        };
        self.cache.prepare(shape.n_kv);
        let slots = match self.current {
            Some((current, slots)) if current == shape => slots,
            _ => {
                self.current = None;
                let (graph, slots) = self.model.graph(&self.cache, shape);
                self.executor.load(graph).map_err(failure)?;
                self.current = Some((shape, slots));
                slots
            }
        };

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
        if params.flash_attn {
            executor.set(slots.mask, &causal_mask(shape, batch.first, F16(0), F16(0xfc00)));
        } else {
            executor.set(slots.mask, &causal_mask(shape, batch.first, 0.0, f32::NEG_INFINITY));
        }
        executor.compute(n_threads).map_err(failure)
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
