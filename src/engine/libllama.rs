//! Models of architectures that pp-run has no graph for, computed by libllama: no pruning, no kernels of our own.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use ggml::llama::{self, ContextParams, DecodeError, LlamaError};

use super::options::Options;
use super::pace::Rest;
use super::prompt_cache::{self, Bytes, Found, Memory, Origin};
use super::report::Report;
use super::session::{Session, are_usable, in_common, is_full};
use super::timeline::Timeline;
use crate::error::{Error, Kind, Result, shown};
use crate::gguf::{Gguf, Metadata, Value};
use crate::model;
use crate::system::memory;
use crate::tokenizer::Token;
use crate::weights::{Kernels, Pack};

/// Limits of libllama's own, which it asserts (llama-hparams.h).
const MAX_LAYERS: u32 = 512;
const MAX_EXPERTS: u32 = 1024;

/// Context that is tried first when the user names none and memory is short.
const LEAST_CTX: u32 = 512;

/// States of a model whose tokens cannot be taken back that are kept: as many messages of a chat.
const MAX_STATES: usize = 8;

/// A model in libllama's memory.
pub struct Model {
    gguf: Arc<Gguf>,
    llama: llama::Model,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by libllama", self.gguf.path().display())
    }
}

impl Model {
    /// Checks what libllama takes for granted, and lets it load the file. `progress` is told the share done (0 to 1) and may stop the load,
    /// which then ends with [`Kind::Interrupted`]. [`Kind::Unsupported`] for an architecture that libllama does not know either, and for
    /// models that do not go on with a text.
    pub fn load(
        gguf: Arc<Gguf>,
        options: &model::Options,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Model> {
        let mut load = || {
            require_file(&gguf)?;
            require_own_settings(options)?;
            let n_gpu_layers = options.weights.gpu.n_layers.unwrap_or(u32::MAX);
            llama::Model::blame_its_file();
            let mut stopped = false;
            let mut watch = |share| {
                let flow = progress(share);
                stopped |= flow.is_break();
                flow
            };
            // Where there is a GPU, libllama has it compute long prompts of the CPU's layers, too, but only from weights as they are in the file.
            let repack = ggml::Device::gpus().is_empty();
            let params = llama::ModelParams { n_gpu_layers, mmap: !options.weights.no_mmap, repack };
            let llama = llama::Model::load_watched(gguf.path(), &params, &mut watch);
            let llama = match llama {
                Err(_) if stopped => {
                    return Err(Error::new(Kind::Interrupted, "interrupted while loading the model"));
                }
                other => other.map_err(|e| refused(&e))?,
            };
            match llama.continues_texts() {
                true => Ok(llama),
                false => Err(Error::unsupported(
                    "this file is fine, but its model does not go on with a text: it is an encoder, or writes all of a text at once",
                )),
            }
        };
        let llama = load().map_err(|e| e.in_file(gguf.path()))?;
        Ok(Model { gguf, llama })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Number of tokens in the vocabulary (the width of the logits).
    pub fn n_vocab(&self) -> usize {
        self.llama.n_vocab()
    }

    /// Context length of the training.
    pub fn n_ctx_train(&self) -> u32 {
        self.llama.n_ctx_train()
    }

    /// Whether a context of `n_ctx` tokens is longer than the model's first training had.
    pub fn is_long(&self, n_ctx: usize) -> bool {
        let meta = self.gguf.metadata();
        let key = format!("{}.rope.scaling.original_context_length", meta.architecture());
        // libllama refuses files in which it is no number.
        let original = meta.u32(&key).ok().flatten().unwrap_or(self.n_ctx_train());
        n_ctx > original as usize
    }

    /// What the memory of a context of `n_ctx` tokens depends on.
    fn origin(&self, options: &Options, n_ctx: usize) -> Origin {
        Origin {
            fingerprint: self.gguf.fingerprint(),
            type_k: options.cache_type_k,
            type_v: options.cache_type_v,
            flash_attn: options.flash_attn,
            is_long: self.is_long(n_ctx),
            memory: Memory::State { versions: format!("pp-run {}, {}", env!("CARGO_PKG_VERSION"), llama::versions()) },
        }
    }
}

/// What was refused, and why, in terms of the file. libllama tells kinds of errors apart by their texts alone.
fn refused(e: &LlamaError) -> Error {
    let reason = shown(&e.0).into_owned();
    if reason.contains("bad_alloc") || reason.contains("unable to allocate") || reason.contains("out of memory") {
        return Error::memory("the weights do not fit in memory: use a smaller model or a smaller quantisation");
    }
    Error::unsupported(format!("libllama cannot load this model: {reason}"))
}

/// Passes a file that libllama may load. [`Kind::Unsupported`] for an architecture that it does not know.
pub fn require_file(gguf: &Gguf) -> Result<()> {
    let architecture = gguf.metadata().architecture();
    if !llama::knows(architecture) {
        return Err(model::unknown_architecture(architecture));
    }
    require(gguf.metadata())?;
    require_types(gguf)
}

/// Settings that libllama is not told.
fn require_own_settings(options: &model::Options) -> Result<()> {
    let model::Options { override_kv, rope, weights, mlock, .. } = options;
    let settings = [
        ("--override-kv", !override_kv.is_empty()),
        ("settings of RoPE", *rope != model::RopeOptions::default()),
        ("--kernels native", weights.kernels == Kernels::Native),
        ("--pack resident", weights.pack == Pack::Resident),
        ("--mlock", *mlock),
    ];
    match settings.iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((name, _)) => {
            Err(Error::usage(format!("libllama runs this model, on which {name} has no effect: leave it out")))
        }
    }
}

/// Passes metadata that libllama does not end the process over (llama-model.cpp: load_hparams).
fn require(meta: &Metadata) -> Result<()> {
    let arch = meta.architecture();
    let key = |name: &str| format!("{arch}.{name}");
    // A number that holds for all layers. Where there is an array, one number for each layer, it is left to libllama.
    let number = |name: &str| match meta.get(&key(name)) {
        Some(Value::Array(_)) => Ok(None),
        _ => meta.u32(&key(name)),
    };
    let within = |name: &str, least: u32, most: u32| match number(name)? {
        Some(n) if !(least..=most).contains(&n) => {
            Err(Error::malformed(format!("{} is {n}, expected {least} to {most}", key(name))))
        }
        n => Ok(n),
    };
    let n_layer = within("block_count", 1, MAX_LAYERS)?;
    if n_layer.is_none() {
        return Err(Error::malformed(format!("metadata key '{}' is missing", key("block_count"))));
    }
    within("embedding_length", 1, 1 << 24)?;
    within("context_length", 1, 1 << 30)?;
    within("feed_forward_length", 0, 1 << 24)?;
    let n_head = within("attention.head_count", 0, 1 << 16)?;
    let n_head_kv = within("attention.head_count_kv", 0, 1 << 16)?;
    if let (Some(n_head), Some(n_head_kv)) = (n_head, n_head_kv)
        && n_head_kv > 0
        && n_head % n_head_kv != 0
    {
        return Err(Error::malformed(format!(
            "{arch}.attention.head_count is {n_head}, which is not a multiple of head_count_kv = {n_head_kv}"
        )));
    }
    for name in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
        within(name, 0, 1 << 16)?;
    }
    let n_expert = within("expert_count", 0, MAX_EXPERTS)?.filter(|&n| n > 1).unwrap_or(0);
    let is_by_layer = matches!(meta.get(&key("expert_used_count")), Some(Value::Array(_)));
    let n_used = number("expert_used_count")?.unwrap_or(0);
    if !is_by_layer && (n_used > n_expert || n_expert > 0 && n_used == 0) {
        let expected = if n_expert > 0 { format!("1 to {n_expert}") } else { "none, as there are no experts".into() };
        return Err(Error::malformed(format!("{arch}.expert_used_count is {n_used}, expected {expected}")));
    }
    if let Some(n) = number("expert_group_count")?.filter(|&n| n > 0)
        && (n_expert == 0 || n >= n_expert || n_expert % n != 0)
    {
        return Err(Error::malformed(format!("{arch}.expert_group_count is {n}, of {n_expert} experts")));
    }
    if let (Some(n), Some(used)) = (number("expert_group_count")?, number("expert_group_used_count")?)
        && n > 1
        && !(1..n).contains(&used)
    {
        return Err(Error::malformed(format!("{arch}.expert_group_used_count is {used}, expected 1 to {}", n - 1)));
    }
    for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon"] {
        if let Some(eps) = meta.f32(&key(name))?.filter(|eps| !(0.0..1.0).contains(eps)) {
            return Err(Error::malformed(format!("{} is {eps}, expected 0 to 1", key(name))));
        }
    }
    let head = match number("attention.key_length")? {
        Some(n) => Some(n),
        None => number("embedding_length")?.zip(n_head).and_then(|(n, heads)| n.checked_div(heads)),
    };
    if let (Some(n), Some(head)) = (number("rope.dimension_count")?, head)
        && (n > head || !n.is_multiple_of(2))
    {
        let expected = format!("an even number up to {head}, the width of a head");
        return Err(Error::malformed(format!("{arch}.rope.dimension_count is {n}, expected {expected}")));
    }
    if let Some(kind) = meta.str(&key("rope.scaling.type"))?
        && !["none", "linear", "yarn", "longrope"].contains(&kind)
    {
        return Err(Error::unsupported(format!(
            "{arch}.rope.scaling.type is '{}'; libllama knows none, linear, yarn and longrope",
            shown(kind)
        )));
    }
    Ok(())
}

/// Passes tensors of types that ggml's kernels take where graphs use them: gains, biases and what is convolved in 32-bit floats, all else in
/// a type of weights.
fn require_types(gguf: &Gguf) -> Result<()> {
    const FLOATS: [&str; 4] = ["conv1d", "shortconv.conv", "ssm_a", "ssm_d"];
    for t in gguf.tensors() {
        let is_vector = t.ne[1..].iter().all(|&n| n == 1);
        let plain = t.name.trim_end_matches(".weight");
        let wants_floats = is_vector || t.name.ends_with(".bias") || FLOATS.iter().any(|f| plain.ends_with(f));
        if wants_floats && t.ty != ggml::Type::F32 || !ggml::can_dequantize(t.ty) {
            let expected = if wants_floats { "F32" } else { "a type of weights" };
            let name = shown(&t.name);
            let message = format!("tensor '{name}' has type {}, expected {expected}", t.ty.name());
            return Err(Error::unsupported(message));
        }
    }
    Ok(())
}

/// A text on a model of libllama's.
pub struct LlamaSession<'m> {
    model: &'m Model,
    context: llama::Context<'m>,
    /// What its memory depends on
    origin: Origin,
    /// Its tokens, all in the context's memory
    tokens: Vec<Token>,
    logits: Vec<f32>,
    n_ubatch: usize,
    rest: Rest,
    interrupt: Arc<AtomicBool>,
    /// States at some of the lengths that the text had, oldest first, if tokens cannot be taken back without them
    states: Option<VecDeque<(usize, Vec<u8>)>>,
    /// Tokens that came from a file, if it lacks what is out of their last one's windows: no more than this one can be taken back
    n_windowed: usize,
}

impl fmt::Debug for LlamaSession<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens of {}", self.tokens.len(), self.n_ctx())
    }
}

impl<'m> LlamaSession<'m> {
    /// An empty text. `interrupt` stops a running computation soon after it is set. [`Kind::Memory`] if there is not enough of it.
    pub fn new(model: &'m Model, options: &Options, interrupt: Arc<AtomicBool>) -> Result<LlamaSession<'m>> {
        let trained = model.n_ctx_train().max(1);
        let (mut n_ctx, shrink) = match options.n_ctx {
            None => (trained, true),
            Some(0) => (trained, false),
            Some(n) => (n, false),
        };
        loop {
            let n_ubatch = options.n_ubatch.min(options.n_batch).clamp(1, n_ctx);
            let params = ContextParams { n_batch: n_ubatch, n_ubatch, ..context_params(options, n_ctx) };
            let fits = memory::require(cells_bytes(&model.gguf, options, n_ctx), "the context", "use a smaller -c");
            let context = fits.and_then(|()| {
                llama::Context::new(&model.llama, &params).map_err(|e| {
                    Error::failed(format!("libllama cannot make a context of {n_ctx} tokens: {}", shown(&e.0)))
                })
            });
            match context {
                Ok(mut context) => {
                    context.set_interrupt(interrupt.clone());
                    let states = model.llama.has_state().then(VecDeque::new);
                    let (origin, n_ubatch) = (model.origin(options, context.n_ctx()), n_ubatch as usize);
                    let (tokens, logits, n_windowed) = (Vec::new(), Vec::new(), 0);
                    let rest = Rest::new(options.power);
                    return Ok(LlamaSession {
                        model,
                        context,
                        origin,
                        tokens,
                        logits,
                        n_ubatch,
                        rest,
                        interrupt,
                        states,
                        n_windowed,
                    });
                }
                Err(_) if shrink && n_ctx > LEAST_CTX => n_ctx = (n_ctx / 2).max(LEAST_CTX),
                Err(e) => return Err(e.in_file(model.gguf.path())),
            }
        }
    }

    /// Makes the memory hold the first `n` tokens, or as many of them as it can go back to.
    fn rewind(&mut self, n: usize) {
        if n >= self.tokens.len() {
            return;
        }
        let mut n = if n + 1 < self.n_windowed { 0 } else { n };
        if let Some(states) = &mut self.states {
            states.retain(|s| s.0 <= n);
            let taken = states.back().is_some_and(|(_, state)| self.context.set_state(state, true));
            n = if taken { states.back().map_or(0, |s| s.0) } else { 0 };
        }
        let position = i32::try_from(n).expect("a context's length");
        if n == 0 || !self.context.forget_from(position) {
            self.context.clear();
            self.states.iter_mut().for_each(VecDeque::clear);
            (n, self.n_windowed) = (0, 0);
        }
        self.tokens.truncate(n);
    }

    /// Computes tokens after those that are there: the logits of the rows whose number `wanted` says are in the context after it.
    fn compute(&mut self, tokens: &[Token], wanted: impl Fn(usize) -> bool) -> Result<()> {
        let first = self.tokens.len();
        let batch: Vec<_> = tokens.iter().enumerate().map(|(i, &t)| (t, (first + i) as i32, 0, wanted(i))).collect();
        if self.rest.is_due() {
            self.context.pause();
            self.rest.wait(&self.interrupt);
        }
        let start = Instant::now();
        let computed = self.context.compute(&batch);
        self.rest.after(start.elapsed());
        match computed {
            Ok(()) => {
                self.tokens.extend_from_slice(tokens);
                Ok(())
            }
            Err(e) => {
                // What was done of the batch goes: its tokens do not count.
                let n = self.tokens.len();
                self.tokens.extend_from_slice(tokens);
                self.rewind(n);
                self.logits.clear();
                Err(match e {
                    DecodeError::Interrupted => Error::new(Kind::Interrupted, "interrupted"),
                    DecodeError::Failed(e) => Error::failed(format!("libllama failed to compute: {}", shown(&e.0))),
                })
            }
        }
    }

    /// Keeps the state, if there is one: the memory can go back to the tokens that are there.
    fn keep_state(&mut self) {
        let n = self.tokens.len();
        let Some(states) = self.states.as_mut().filter(|states| n > 0 && states.back().is_none_or(|s| s.0 < n)) else {
            return;
        };
        if states.len() == MAX_STATES {
            states.pop_front();
        }
        states.push_back((n, self.context.state(true)));
    }

    /// Takes over the logits of row `i` of the batch that was computed.
    fn read_logits(&mut self, i: usize) -> Result<()> {
        let logits = self.context.logits(i).unwrap_or_default();
        if !are_usable(logits) {
            return Err(Error::malformed(format!(
                "the model computes NaN or infinity for token {}: the file is damaged, or its numbers are too large",
                self.tokens.len() - 1
            )));
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        Ok(())
    }

    /// Reads a text from its beginning; `each(i, logits)` is given the logits after token `i`, from token `first` on.
    pub fn score(
        &mut self,
        text: &[Token],
        first: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.rewind(0);
        for piece in text.chunks(self.n_ubatch) {
            let start = self.tokens.len();
            self.compute(piece, |i| start + i >= first)?;
            for i in first.saturating_sub(start)..piece.len() {
                self.read_logits(i)?;
                each(start + i, &self.logits)?;
            }
        }
        Ok(())
    }
}

impl<'m> Timeline<'m> for LlamaSession<'m> {
    fn own(&self) -> Option<&Session<'m>> {
        None
    }

    fn own_mut(&mut self) -> Option<&mut Session<'m>> {
        None
    }

    fn sync(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        self.rewind(in_common(&self.tokens, prompt, self.n_ctx())?);
        let total = prompt.len() - self.tokens.len();
        while self.tokens.len() < prompt.len() {
            let left = &prompt[self.tokens.len()..];
            if left.len() == 1 {
                self.keep_state();
            }
            // The same prompt again needs its last token only, if there is a state of those before it.
            let n = if self.states.is_some() { (left.len() - 1).max(1) } else { left.len() };
            let n = n.min(self.n_ubatch);
            let is_last = n == left.len();
            self.compute(&left[..n], |i| is_last && i + 1 == n)?;
            if is_last {
                self.read_logits(n - 1)?;
            }
            progress(total + self.tokens.len() - prompt.len(), total);
        }
        Ok(total)
    }

    fn decode(&mut self, token: Token) -> Result<()> {
        if self.tokens.len() >= self.n_ctx() {
            return Err(is_full(self.n_ctx()));
        }
        self.compute(&[token], |_| true)?;
        self.read_logits(0)
    }

    fn decode_together(&mut self, tokens: &[Token], logits: &mut Vec<f32>) -> Result<()> {
        if self.tokens.len() + tokens.len() > self.n_ctx() {
            return Err(is_full(self.n_ctx()));
        }
        self.compute(tokens, |_| true)?;
        logits.clear();
        for i in 0..tokens.len() {
            self.read_logits(i)?;
            logits.extend_from_slice(&self.logits);
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.rewind(0);
    }

    fn expect(&mut self, _: usize) {}

    fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn n_ctx(&self) -> usize {
        self.context.n_ctx()
    }

    fn n_ubatch(&self) -> usize {
        self.n_ubatch
    }

    fn batch_progress(&self) -> Box<dyn Fn() -> f64 + Send> {
        Box::new(|| 0.0)
    }

    fn pause(&self) {
        self.context.pause();
    }

    fn prune_report(&self) -> Option<&Report> {
        None
    }

    fn saveable(&self, n: usize) -> usize {
        let is_all = n == self.tokens.len();
        let Some(states) = &self.states else {
            return if is_all || n + 1 >= self.n_windowed { n } else { 0 };
        };
        let last = states.iter().map(|s| s.0).rfind(|&at| at <= n).unwrap_or(0);
        if is_all && last + 1 != n { n } else { last }
    }

    fn save_state(&mut self, path: &Path, n_tokens: usize) -> Result<()> {
        self.rewind(n_tokens);
        if self.tokens.len() != n_tokens {
            return Err(Error::failed(format!("libllama cannot go back to token {n_tokens} to save it")).in_file(path));
        }
        let state = self.context.state(false);
        let state = Bytes { n: state.len(), write: &|out| out.write_all(&state) };
        prompt_cache::write(path, &self.origin, &self.tokens, state)
    }

    fn restore_state(&mut self, path: &Path) -> Result<Found> {
        let Some(map) = prompt_cache::open(path)? else { return Ok(Found::Nothing) };
        let saved = match prompt_cache::parse(&map, &self.origin, self.n_ctx(), self.model.n_vocab()) {
            Ok(saved) => saved,
            Err(why) => return Ok(Found::Unusable(why)),
        };
        self.clear();
        if !self.context.set_state(saved.memory, false) || self.context.n_past() != saved.tokens.len() {
            self.context.clear();
            return Ok(Found::Unusable("is damaged: it has a state that libllama does not take".into()));
        }
        self.tokens = saved.tokens;
        self.logits.clear();
        self.n_windowed = if self.model.llama.has_window() { self.tokens.len() } else { 0 };
        self.keep_state();
        Ok(Found::Restored)
    }
}

/// libllama's settings for a context of `n_ctx` tokens.
pub fn context_params(options: &Options, n_ctx: u32) -> ContextParams {
    ContextParams {
        n_ctx,
        n_batch: options.n_batch,
        n_ubatch: options.n_ubatch,
        n_seq_max: 1,
        n_threads: options.n_threads as u32,
        n_threads_batch: options.n_threads_batch as u32,
        type_k: options.cache_type_k.tensor_type(),
        type_v: options.cache_type_v.tensor_type(),
        flash_attn: options.flash_attn,
    }
}

/// Bytes of keys and values, where the file says how large these are; 0 otherwise.
pub fn cells_bytes(gguf: &Gguf, options: &Options, n_ctx: u32) -> u64 {
    let meta = gguf.metadata();
    let arch = meta.architecture();
    let number = |name: &str| meta.u32(&format!("{arch}.{name}")).ok().flatten().map(u64::from);
    let row = || {
        let n_head = number("attention.head_count")?;
        let head = match number("attention.key_length") {
            Some(n) => n,
            None => number("embedding_length")?.checked_div(n_head)?,
        };
        let n = usize::try_from(number("attention.head_count_kv").unwrap_or(n_head) * head).ok()?;
        let bytes = |ty: crate::graph::CacheType| ty.tensor_type().row_bytes(n).unwrap_or(0) as u64;
        Some((bytes(options.cache_type_k) + bytes(options.cache_type_v)).saturating_mul(number("block_count")?))
    };
    row().unwrap_or(0).saturating_mul(u64::from(n_ctx))
}
