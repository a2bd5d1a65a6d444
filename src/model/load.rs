//! A model in memory, and the graphs that compute with it.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use ggml::{BufferType, Device, Graph, Slot, Store, Type};

use super::arch::{self, Architecture, Tensors};
use super::hparams::Hparams;
use super::options::Options;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::graph::{Clock, GraphBuilder, GraphSlots, KvCache, Layout, MAX_ROW_TOKENS, Pieces, Results, Task};
use crate::prune::{Pass, Scale};
use crate::system::memory::Needs;
use crate::weights::{Dims, Factors, Kernel, Kernels, Layer, Loaded, Loader, Mlp, Pack, Placement, pack_all};

/// A model in memory, ready to compute.
#[derive(Debug)]
pub struct Model {
    gguf: Arc<Gguf>,
    architecture: &'static Architecture,
    hparams: Hparams,
    placement: Placement,
    store: Rc<Store>,
    tensors: Tensors,
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
        let (mut model, ()) =
            Model::made_by(gguf, options, |loader: Loader<'_>| Ok((loader.finish(n_threads, progress)?, ())))?;
        if options.weights.pack == Pack::Resident {
            pack_all(model.tensors.layers.iter_mut().flat_map(Layer::weights_mut).collect(), n_threads)?;
        }
        Ok(model)
    }

    /// The same without weights in memory, for graphs that are only measured; and what weights would take of each device's memory.
    pub fn sketch(gguf: Arc<Gguf>, options: &Options) -> Result<(Model, Needs)> {
        Model::made_by(gguf, options, |loader: Loader<'_>| loader.sketch())
    }

    fn made_by<T>(
        gguf: Arc<Gguf>,
        options: &Options,
        finish: impl FnOnce(Loader<'_>) -> Result<(Loaded, T)>,
    ) -> Result<(Model, T)> {
        let (architecture, hparams) = arch::read(&gguf, &options.rope)?;
        let placement = Placement::new(hparams.n_layer, &options.weights.gpu)?;
        let make = || {
            let mut loader = Loader::new(&gguf, &placement, &options.weights, hparams.n_layer);
            let tensors = (architecture.tensors)(&mut loader, &hparams)?;
            Ok::<_, crate::error::Error>((tensors, finish(loader)?))
        };
        let (tensors, (Loaded { store, ignored }, other)) = make().map_err(|e| e.in_file(gguf.path()))?;
        Ok((Model { gguf: gguf.clone(), architecture, hparams, placement, store, tensors, ignored }, other))
    }

    /// Whether our kernels multiply any weight of the layers; never [`Kernels::Auto`].
    pub fn kernels(&self) -> Kernels {
        let is_own = |l: &Layer| l.weights().iter().any(|w| w.kernel.is_ever_own());
        if self.tensors.layers.iter().any(is_own) { Kernels::Native } else { Kernels::Ggml }
    }

    /// Whose kernels multiply the matrices of the layers, in words: how many of each type.
    pub fn kernels_in_words(&self) -> String {
        let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for weight in self.tensors.layers.iter().flat_map(Layer::weights) {
            *counts.entry((weight.rows.ty().name(), weight.kernel.words())).or_default() += 1;
        }
        let parts: Vec<String> =
            counts.iter().map(|((ty, whose), n)| format!("{n} matrices in {ty}: {whose}")).collect();
        parts.join("; ")
    }

    /// By which KL divergences of this model are put in words: it is recognised by its name, architecture and number of parameters.
    pub fn scale(&self) -> Scale {
        let name = self.gguf.metadata().lossy("general.name").unwrap_or_default();
        Scale::of(&name, self.gguf.metadata().architecture(), self.gguf.n_params())
    }

    /// Whether our kernels multiply all weights of the graph, whatever the number of tokens: ggml's round otherwise for several tokens than
    /// for one. Experts are chosen by scores that ggml's kernels make.
    pub fn is_own_throughout(&self) -> bool {
        let Tensors { layers, head, per_layer, .. } = &self.tensors;
        let others = [&head.output].into_iter().chain(per_layer.iter().map(|p| &p.projection));
        let has_experts = layers.iter().any(|l| matches!(l.mlp, Mlp::Experts(_)));
        !has_experts && layers.iter().flat_map(Layer::weights).chain(others).all(|w| w.kernel == Kernel::Own)
    }

    /// Whether a token of a prompt is computed as the same bits whichever others are computed with it, as long as these are more than
    /// [`MAX_ROW_TOKENS`]: so it is with our kernels and, where they multiply, with our attention. ggml's round otherwise for other numbers
    /// of tokens.
    pub fn reads_alike(&self) -> bool {
        let Tensors { layers, per_layer, .. } = &self.tensors;
        let has_experts = layers.iter().any(|l| matches!(l.mlp, Mlp::Experts(_)));
        let mut weights = layers.iter().flat_map(Layer::weights).chain(per_layer.iter().map(|p| &p.projection));
        !has_experts && weights.all(|w| w.kernel.is_own(MAX_ROW_TOKENS + 1))
    }

    /// The model's shape.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// The sizes of its parts.
    pub fn dims(&self) -> Dims {
        let n_embd = self.hparams.n_embd;
        Dims { n_embd, layers: self.tensors.layers.iter().map(|l| l.dims(n_embd)).collect() }
    }

    /// Its layers.
    pub fn layers(&self) -> &[Layer] {
        &self.tensors.layers
    }

    /// Tokens of a context at most: where positions are learned, as many as there are; else any number.
    pub fn max_ctx(&self) -> usize {
        self.tensors.pos_embd.map_or(usize::MAX, |_| self.hparams.n_ctx_train as usize)
    }

    /// Whether a context of `n_ctx` tokens is one for which positions are embedded otherwise than for shorter ones.
    pub fn is_long(&self, n_ctx: usize) -> bool {
        let is_long = |f: &Factors| matches!(f, Factors::ByContext { n_ctx: longest, .. } if n_ctx > *longest);
        self.layers().iter().filter_map(|l| l.attn.rotary.as_ref()).any(|r| is_long(&r.factors))
    }

    /// Where its weights lie.
    pub fn placement(&self) -> &Placement {
        &self.placement
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

    /// Keeps the weights from being swapped out; `false` if the operating system refuses.
    pub fn lock(&self) -> bool {
        self.store.lock()
    }

    /// The backends in use as llama-bench names them: `CPU`, or `Vulkan,CPU`.
    pub fn backend(&self) -> String {
        let mut names: Vec<String> = self.gpus().into_iter().map(|gpu| gpu.backend_name()).collect();
        names.dedup();
        names.push("CPU".to_owned());
        names.join(",")
    }

    /// The GPUs that layers are on.
    pub fn gpus(&self) -> Vec<Device> {
        self.placement.gpus()
    }

    /// The memory of each layer's cache.
    pub fn cache_buffer_types(&self) -> Vec<BufferType> {
        (0..self.hparams.n_layer).map(|il| self.placement.device(il).buffer_type()).collect()
    }

    /// Room that the graph of a batch of `n_pieces` sequences needs, in tensors.
    fn max_tensors(&self, n_pieces: usize) -> usize {
        // A layer has some 40 nodes and views, with biases, norms of heads, rotated caches and a third block some 100, with a probe or with
        // tokens that are read whole as many again; rows that a GPU gathers have some 10 for each matrix; ggml's attention of a piece among
        // others has some 16.
        128 + (320 + 16 * n_pieces) * self.hparams.n_layer
    }

    fn task<'a>(&'a self, cache: &'a KvCache, layout: &'a Layout, pass: Pass<'a>, clock: &'a Arc<Clock>) -> Task<'a> {
        let is_stock = |l: &Layer| l.attn.q.weight.kernel == Kernel::Stock;
        let stock_from = self.tensors.layers.iter().position(is_stock).unwrap_or(usize::MAX);
        Task { store: &self.store, n_layer: self.hparams.n_layer, stock_from, cache, layout, pass, clock }
    }

    /// The graph of a micro-batch.
    pub fn graph(&self, cache: &KvCache, layout: &Layout, pass: Pass, clock: &Arc<Clock>) -> (Graph, GraphSlots) {
        let n_pieces = match &layout.pieces {
            Pieces::Equal { .. } => 1,
            Pieces::Any(pieces) => pieces.len(),
        };
        Graph::build(self.max_tensors(n_pieces), |g| {
            let builder = GraphBuilder::new(g, self.task(cache, layout, pass, clock));
            (self.architecture.graph)(builder, &self.hparams, &self.tensors)
        })
    }

    /// The graph of one layer's MLP alone: residual stream F32 `[n_embd, n_tokens]` (input) to the block's output.
    pub fn mlp_graph(
        &self,
        cache: &KvCache,
        layout: &Layout,
        pass: Pass,
        clock: &Arc<Clock>,
        il: usize,
    ) -> (Graph, (Slot, GraphSlots)) {
        Graph::build(256, |g| {
            let mut builder = GraphBuilder::new(g, self.task(cache, layout, pass, clock));
            let (x, input) = g.input("ffn_inp", Type::F32, [self.hparams.n_embd, layout.n_tokens(), 1, 1]);
            let layer = &self.tensors.layers[il];
            let out = builder.mlp(x, &layer.ffn_norm, &layer.mlp, il);
            (input, builder.finish(out))
        })
    }

    /// The graph of the output head alone: states F32 `[n_embd, n]` (input) to logits `[n_vocab, n]`.
    pub fn logits_graph(&self, cache: &KvCache, n: usize, clock: &Arc<Clock>) -> (Graph, (Slot, GraphSlots)) {
        let layout = Layout::largest(1, n, n, n, Results::Logits);
        Graph::build(32, |g| {
            let mut builder = GraphBuilder::new(g, self.task(cache, &layout, Pass::Dense, clock));
            let (states, input) = g.input("result_norm", Type::F32, [self.hparams.n_embd, n, 1, 1]);
            let logits = builder.logits(states, &self.tensors.head);
            (input, builder.finish(Some(logits)))
        })
    }
}

/// Architecture, size and the type that most bytes are of, such as `llama 6.7B Q4_0`.
pub fn description(gguf: &Gguf) -> String {
    let mut types: HashMap<String, u64> = HashMap::new();
    for t in gguf.tensors() {
        *types.entry(t.ty.name()).or_default() += t.n_bytes;
    }
    let main = types.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map(|t| t.0).unwrap_or_default();
    let size = match gguf.n_params() as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.0}M", n / 1e6),
    };
    format!("{} {size} {main}", gguf.metadata().architecture())
}
