//! The model: hyper-parameters, weights, KV cache and graph. Knows tensors and tokens, never text.

mod builder;
mod choose;
mod compact;
mod hparams;
mod kv_cache;
mod llama;
mod native;
mod options;
mod weights;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ggml::{BufferType, Builder, Device, Graph, Slot, Store, TensorId, Type};

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::prune::plan::{Block, Dims, Kind};
use crate::prune::reduce::Matrix;
use crate::prune::score::Formula;
use crate::system::memory;
use crate::weights::{Kernels, Pack};

use builder::BatchBuilder;
pub use builder::{Pass, Shape, Slots};
pub use compact::Compact;
pub use hparams::{ARCHITECTURES, Hparams};
pub use kv_cache::{CacheParams, KvCache, hadamard};
use native::{Clock, Native, Panels, pack, packed_bytes};
pub use options::{Options, RopeOptions, RopeScaling};
use weights::{Loader, Placement, Weights};

/// A model in memory, ready to compute.
#[derive(Debug)]
pub struct Model {
    gguf: Arc<Gguf>,
    hparams: Hparams,
    placement: Placement,
    store: Rc<Store>,
    tensors: llama::Tensors,
    /// The weights as the file has them, for what is gathered out of them
    matrices: HashMap<TensorId, Matrix>,
    native: Native,
    ignored: Vec<String>,
}

impl Model {
    /// Checks the tensors against the hyper-parameters and brings the weights into memory with `n_threads` threads.
    /// `progress` is told the share done (0 to 1) and may stop the load, which then ends with
    /// [`crate::error::Kind::Interrupted`].
    pub fn load(
        gguf: Arc<Gguf>,
        options: &Options,
        n_threads: usize,
        progress: &mut (dyn FnMut(f32) -> ControlFlow<()> + Send),
    ) -> Result<Model> {
        let hparams = Hparams::read(&gguf, &options.rope)?;
        let placement = Placement::new(&gguf, hparams.n_layer, options.weights.n_gpu_layers);
        // What decides is what a layer does most.
        let native = choose::native(&options.weights, &gguf, "blk.0.ffn_up.weight", &placement, n_threads);
        let load = |progress: &mut (dyn FnMut(f32) -> ControlFlow<()> + Send)| {
            let mut loader = Loader::new(&gguf, &placement, &options.weights, native);
            let wanted = llama::Tensors::want(&mut loader, &hparams)?;
            let weights = loader.finish(n_threads, progress)?;
            Ok((wanted.resolve(&weights.ids), weights))
        };
        let (tensors, weights) = load(progress).map_err(|e: Error| e.in_file(gguf.path()))?;
        let Weights { store, matrices, native: multiplied, ignored, .. } = weights;
        let resident = match options.weights.pack {
            Pack::Batch => HashMap::new(),
            Pack::Resident => resident(&tensors, &matrices, &multiplied, hparams.n_layer, n_threads)?,
        };
        let native = Native { weights: multiplied, resident, clock: Arc::default() };
        Ok(Model { gguf: gguf.clone(), hparams, placement, store, tensors, matrices, native, ignored })
    }

    /// Whose kernels multiply most weights: never [`Kernels::Auto`].
    pub fn kernels(&self) -> Kernels {
        if self.native.weights.is_empty() { Kernels::Ggml } else { Kernels::Native }
    }

    /// What prompts take.
    pub(crate) fn clock(&self) -> &Clock {
        &self.native.clock
    }

    /// The model's shape.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// Tensors of the file that nothing computes with.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Number of tokens in the vocabulary (the width of the logits).
    pub fn n_vocab(&self) -> usize {
        self.hparams.n_vocab
    }

    /// The file that the model was loaded from.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Bytes of all weights in the file.
    pub fn n_bytes(&self) -> u64 {
        self.gguf.tensors().iter().map(|t| t.n_bytes).sum()
    }

    /// Number of elements of all weights in the file.
    pub fn n_params(&self) -> u64 {
        n_params(&self.gguf)
    }

    /// Keeps the weights from being swapped out; `false` if the operating system refuses.
    pub fn lock(&self) -> bool {
        self.store.lock()
    }

    /// [`description`] of the model's file.
    pub fn description(&self) -> String {
        description(&self.gguf)
    }

    /// The backends in use as llama-bench names them: `CPU`, or `Vulkan,CPU`.
    pub fn backend(&self) -> String {
        match self.placement.gpu {
            Some(gpu) => format!("{},CPU", gpu.backend_name()),
            None => "CPU".to_owned(),
        }
    }

    /// The GPUs that layers are on.
    pub(crate) fn gpus(&self) -> Vec<Device> {
        self.placement.gpu.into_iter().collect()
    }

    /// The memory of each layer's cache.
    pub(crate) fn cache_buffer_types(&self) -> Vec<BufferType> {
        (0..self.hparams.n_layer).map(|il| self.placement.device(il).buffer_type()).collect()
    }

    /// Room that a graph of this model needs, in tensors.
    pub(crate) fn max_tensors(&self) -> usize {
        // A layer has some 40 nodes and views, with biases and rotated caches some 70, with a probe as many again.
        128 + 160 * self.hparams.n_layer
    }

    fn builder<'a, 'g>(
        &'a self,
        g: &'a Builder<'g>,
        cache: &'a KvCache,
        shape: Shape,
        pass: Option<Pass<'a>>,
    ) -> BatchBuilder<'a, 'g> {
        BatchBuilder::new(g, &self.hparams, &self.store, &self.matrices, &self.native, cache, shape, pass)
    }

    /// The graph of a micro-batch.
    pub(crate) fn graph(&self, cache: &KvCache, shape: Shape, pass: Option<Pass>) -> (Graph, Slots) {
        Graph::build(self.max_tensors(), |g| self.tensors.graph(self.builder(g, cache, shape, pass)))
    }

    /// The graph of one layer's MLP alone: residual stream F32 `[n_embd, n_tokens]` (input) to the block's output.
    pub(crate) fn ffn_graph(&self, cache: &KvCache, shape: Shape, pass: Pass, il: usize) -> (Graph, (Slot, Slots)) {
        Graph::build(256, |g| {
            let builder = self.builder(g, cache, shape, Some(pass));
            let (x, input) = g.input("ffn_inp", Type::F32, [self.hparams.n_embd, shape.n_tokens(), 1, 1]);
            (input, self.tensors.ffn_graph(builder, x, il))
        })
    }

    /// The graph of the output matrix alone: states F32 `[n_embd, n]` (input) to logits `[n_vocab, n]` (output).
    pub(crate) fn output_graph(&self, n: usize) -> (Graph, (Slot, Slot)) {
        Graph::build(8, |g| {
            let (states, input) = g.input("result_norm", Type::F32, [self.hparams.n_embd, n, 1, 1]);
            let logits = g.mul_mat(g.leaf(&self.store, self.tensors.output()), states);
            (input, g.output(logits))
        })
    }

    /// What of the model's shape decides on pruning.
    pub fn dims(&self) -> Dims {
        let h = &self.hparams;
        Dims {
            n_layer: h.n_layer,
            n_embd: h.n_embd,
            n_head: h.n_head,
            n_head_kv: h.n_head_kv,
            n_embd_head: h.n_embd_head,
            n_ff: h.n_ff,
        }
    }

    /// Constants of the input channels of the last matrix of each block, for scores by `formula`.
    pub fn constants(
        &self,
        formula: Formula,
        blocks: impl Iterator<Item = Block>,
        n_threads: usize,
    ) -> BTreeMap<Block, Vec<f32>> {
        let constants = |block: Block| {
            let (attn, ffn) = self.tensors.blocks(block.il);
            let last = if block.kind == Kind::Attn { attn.output } else { ffn.down };
            (block, formula.constants(&self.matrices[&last.0], n_threads))
        };
        blocks.map(constants).collect()
    }

    /// The values of a vector of floats among the weights.
    fn vector(&self, id: TensorId) -> Vec<f32> {
        let matrix = &self.matrices[&id];
        let mut values = vec![0.0; matrix.n_in()];
        ggml::dequantize_row(matrix.ty(), matrix.row(0), &mut values);
        values
    }
}

/// `--pack resident`: all matrices of the layers that our kernels multiply, in panels.
fn resident(
    tensors: &llama::Tensors,
    matrices: &HashMap<TensorId, Matrix>,
    native: &HashMap<TensorId, bool>,
    n_layer: usize,
    n_threads: usize,
) -> Result<HashMap<TensorId, Panels>> {
    let of_layer = |il| {
        let (attn, ffn) = tensors.blocks(il);
        [attn.q, attn.k, attn.v, attn.output, ffn.gate, ffn.up, ffn.down].map(|w| w.0)
    };
    let weights: Vec<TensorId> = (0..n_layer).flat_map(of_layer).filter(|w| native.contains_key(w)).collect();
    let sizes: Vec<usize> = weights.iter().map(|w| packed_bytes(&matrices[w])).collect();
    let advice = "leave out --pack resident, or use a smaller model";
    let (pages, ranges) = memory::make(&sizes, n_threads, "the packed weights", advice, |i, out| {
        pack(&matrices[&weights[i]], out);
    })?;
    Ok(weights.into_iter().zip(ranges).map(|(w, range)| (w, Panels { pages: pages.clone(), range })).collect())
}

/// Architecture, size and the type that most bytes are of, such as `llama 6.7B Q4_0`.
pub fn description(gguf: &Gguf) -> String {
    let mut types: HashMap<String, u64> = HashMap::new();
    for t in gguf.tensors() {
        *types.entry(t.ty.name()).or_default() += t.n_bytes;
    }
    let main = types.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map(|t| t.0).unwrap_or_default();
    let size = match n_params(gguf) as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.0}M", n / 1e6),
    };
    format!("{} {size} {main}", gguf.metadata().architecture())
}

fn n_params(gguf: &Gguf) -> u64 {
    gguf.tensors().iter().map(|t| t.n_elements()).sum()
}

/// Whether no weight and no scale of the file is NaN or infinite, looked at by `n_threads` threads: kernels for quantised weights do not
/// pass a NaN on reliably, so what it does to an answer may never show. `stop` ends the search without a finding.
pub fn check_values(gguf: &Gguf, n_threads: usize, stop: &AtomicBool) -> Result<()> {
    let next = AtomicUsize::new(0);
    let first_bad = AtomicUsize::new(usize::MAX);
    let work = || {
        while let Some((i, t)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let i = if stop.load(Ordering::Relaxed) { usize::MAX } else { i };
            gguf.tensors().get(i).map(|t| (i, t))
        } {
            if !t.ty.is_finite(gguf.data(t)) {
                first_bad.fetch_min(i, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
    match gguf.tensors().get(first_bad.into_inner()) {
        Some(t) => Err(Error::malformed(format!("tensor '{}' holds invalid values (NaN or infinity)", t.name))
            .in_file(gguf.path())),
        None => Ok(()),
    }
}
