//! Models of random numbers, from a seed: tiny ones of each architecture for tests, wide ones for benchmarks.

use std::path::Path;

use ggml::Type;

/// RoPE metadata of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeKind {
    /// None: base 10000.
    Plain,
    /// Positions divided by 4.
    Linear,
    /// YaRN, factor 4.
    Yarn,
    /// LLaMA 3: a tensor of frequency factors, base 500000.
    Llama3,
}

/// Architecture of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arch {
    Llama,
    /// Biases of queries, keys and values
    Qwen2,
    /// Norms of each head's queries and keys
    Qwen3,
    /// Fused matrices, heads that are rotated in part, other frequencies for long contexts
    Phi3,
    /// A temperature of attention by position, YaRN by the file's settings
    Mistral3,
    /// No positions in every fourth layer
    SmolLm3,
    /// Factors on embeddings, on what blocks add, on scores and logits
    Granite,
    /// Norms after blocks, a GELU gate, windows, caps on scores and logits
    Gemma2,
    /// The same with norms of heads and other frequencies in windows, without the caps
    Gemma3,
    /// The same with other heads in windows, layers that share keys and values, widths that differ, embeddings of each layer
    Gemma4,
    /// Learned positions, layer norms, an MLP without a gate: libllama does not know it
    Opt,
    /// Norms of each head's queries and keys, experts
    Qwen3Moe,
    /// Experts
    Mixtral,
    /// Experts with biases and a gate of their own, windows, sinks of attention
    GptOss,
    /// A state instead of attention: libllama runs it
    Mamba,
    /// Short convolutions and attention: libllama runs it
    Lfm2,
}

impl Arch {
    /// Those that pp-run has graphs for.
    pub const ALL: [Arch; 13] = [
        Arch::Llama,
        Arch::Qwen2,
        Arch::Qwen3,
        Arch::Phi3,
        Arch::Mistral3,
        Arch::SmolLm3,
        Arch::Granite,
        Arch::Gemma2,
        Arch::Gemma3,
        Arch::Gemma4,
        Arch::Qwen3Moe,
        Arch::Mixtral,
        Arch::GptOss,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama | Arch::Mixtral => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Phi3 => "phi3",
            Arch::Mistral3 => "mistral3",
            Arch::SmolLm3 => "smollm3",
            Arch::Granite => "granite",
            Arch::Gemma2 => "gemma2",
            Arch::Gemma3 => "gemma3",
            Arch::Gemma4 => "gemma4",
            Arch::Opt => "opt",
            Arch::Qwen3Moe => "qwen3moe",
            Arch::GptOss => "gpt-oss",
            Arch::Mamba => "mamba",
            Arch::Lfm2 => "lfm2",
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Arch::Gemma2 | Arch::Gemma3 | Arch::Gemma4)
    }
}

/// Width of what each layer of gemma4 has of a token's embeddings: of whole blocks of all types.
const PER_LAYER: usize = 256;

/// What to make.
#[derive(Debug, Clone)]
pub struct Forge {
    pub arch: Arch,
    /// Type of all matrices
    pub ty: Type,
    /// Matrices are of the types that llama.cpp's Q4_K_M has for them instead
    pub is_q4_k_m: bool,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_ff: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    /// Width of a head, if it is not the embedding's divided by the heads
    pub n_embd_head: Option<usize>,
    pub n_layer: usize,
    pub n_ctx: u32,
    /// Positions that a query looks back in layers with a window
    pub window: u32,
    /// Experts of a layer, and how many of them a token is given to, where there are experts; each has half of `n_ff` channels
    pub experts: [usize; 2],
    /// The output matrix is the embedding table.
    pub tied: bool,
    pub biases: bool,
    pub rope: RopeKind,
    /// Rows of a matrix repeat after so many: what benchmarks measure does not depend on them.
    pub distinct_rows: usize,
    pub seed: u64,
}

/// A type by its name: of few models, so that no constant names it.
pub fn type_of_name(name: &str) -> Type {
    (0..u32::from(u8::MAX))
        .filter_map(Type::from_id)
        .find(|t| t.name().eq_ignore_ascii_case(name))
        .expect("ggml has it")
}

/// 4-bit floats with a scale for each 32 of them, the type of gpt-oss' experts.
pub fn mxfp4() -> Type {
    type_of_name("mxfp4")
}

/// The tiny models of tests/golden.
pub fn golden() -> [(&'static str, Forge); 3] {
    let forge = |n_head_kv, seed| Forge { n_layer: 5, seed, ..Forge::tiny(Type::F32, 8, n_head_kv) };
    let opt = Forge { arch: Arch::Opt, ..forge(8, 14) };
    [("multi-head", forge(8, 11)), ("grouped-query", forge(2, 12)), ("opt", opt)]
}

/// The tiny models whose results `tests/tools/hashes` prints: all architectures, and a type of weights for each way to multiply. Several
/// queries share a key and a value, but for OPT. For llama, every matrix has a bias.
pub fn of_each_kind() -> [(&'static str, Forge); 18] {
    let kinds = [
        ("q4_0", Arch::Llama, Type::Q4_0),
        ("q4_1", Arch::Llama, Type::Q4_1),
        ("q4_k", Arch::Llama, Type::Q4_K),
        ("q5_0", Arch::Llama, Type::Q5_0),
        // Rows of it are not multiplied where they are.
        ("tq2_0", Arch::Llama, type_of_name("tq2_0")),
        ("qwen2-q4_0", Arch::Qwen2, Type::Q4_0),
        ("qwen3-q4_k", Arch::Qwen3, Type::Q4_K),
        ("phi3-q4_0", Arch::Phi3, Type::Q4_0),
        ("mistral3-q4_k", Arch::Mistral3, Type::Q4_K),
        ("smollm3-q4_0", Arch::SmolLm3, Type::Q4_0),
        ("granite-q8_0", Arch::Granite, Type::Q8_0),
        ("gemma2-q4_k", Arch::Gemma2, Type::Q4_K),
        ("gemma3-q4_0", Arch::Gemma3, Type::Q4_0),
        ("gemma4-q8_0", Arch::Gemma4, Type::Q8_0),
        ("qwen3moe-q4_k", Arch::Qwen3Moe, Type::Q4_K),
        ("gpt-oss-mxfp4", Arch::GptOss, mxfp4()),
        ("opt-f32", Arch::Opt, Type::F32),
        ("opt-q8_0", Arch::Opt, Type::Q8_0),
    ];
    kinds.map(|(name, arch, ty)| {
        let biases = arch == Arch::Llama;
        let n_head_kv = if arch == Arch::Opt { 8 } else { 2 };
        (name, Forge { arch, n_layer: 5, seed: 13, biases, ..Forge::tiny(ty, 8, n_head_kv) })
    })
}

impl Forge {
    /// A model of two layers, 512 tokens and width 256.
    pub fn tiny(ty: Type, n_head: usize, n_head_kv: usize) -> Forge {
        Forge {
            arch: Arch::Llama,
            ty,
            is_q4_k_m: false,
            n_vocab: 512,
            n_embd: 256,
            n_ff: 512,
            n_head,
            n_head_kv,
            n_embd_head: None,
            n_layer: 2,
            n_ctx: 2048,
            window: 100,
            experts: [8, 2],
            tied: false,
            biases: false,
            rope: RopeKind::Plain,
            distinct_rows: usize::MAX,
            seed: 1,
        }
    }

    /// A model as small as there can be: two layers, 300 tokens and width 64.
    pub fn smallest() -> Forge {
        Forge { n_vocab: 300, n_embd: 64, n_ff: 96, ..Forge::tiny(Type::Q4_0, 4, 2) }
    }

    /// Writes the model.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.doc().bytes()).unwrap();
    }

    /// The model's file, to be changed before it is written.
    pub fn doc(&self) -> Doc {
        let mut doc = Doc::default();
        self.metadata(&mut doc);
        let mut random = Random(self.seed);
        let tensors = self.tensors();
        let is_tied = !tensors.iter().any(|t| t.0 == "output.weight");
        for (name, shape, mut ty) in tensors {
            if self.is_q4_k_m && ty == self.ty {
                ty = self.type_in_q4_k_m(&name, shape[0], is_tied);
            }
            let data = self.data(&name, &shape, ty, &mut random);
            let ne = shape.iter().map(|&n| n as u64).collect();
            doc.tensors.push(TensorDoc { name: name.into_bytes(), ne, ty: ty.id(), data, offset: None });
        }
        doc
    }

    fn metadata(&self, w: &mut Doc) {
        let key = |name: &str| format!("{}.{name}", self.arch.name());
        w.str("general.architecture", self.arch.name());
        w.str("general.name", "random");
        w.u32(&key("context_length"), self.n_ctx);
        w.u32(&key("embedding_length"), self.n_embd as u32);
        w.u32(&key("block_count"), self.n_layer as u32);
        let u32s =
            |numbers: Vec<usize>| numbers.into_iter().map(|n| (n as u32).to_le_bytes().to_vec()).collect::<Vec<_>>();
        match self.arch {
            Arch::Gemma4 => {
                let widths = (0..self.n_layer).map(|il| self.n_ff(il)).collect();
                w.array(&key("feed_forward_length"), U32, u32s(widths).into_iter());
            }
            _ => w.u32(&key("feed_forward_length"), self.n_ff as u32),
        }
        w.u32(&key("attention.head_count"), self.n_head as u32);
        w.u32(&key("attention.head_count_kv"), self.n_head_kv as u32);
        if let Some(n) = self.n_embd_head {
            w.u32(&key("attention.key_length"), n as u32);
            w.u32(&key("attention.value_length"), n as u32);
        }
        if matches!(
            self.arch,
            Arch::Llama | Arch::Mixtral | Arch::Mistral3 | Arch::SmolLm3 | Arch::Granite | Arch::Phi3
        ) {
            w.u32(&key("rope.dimension_count"), self.n_rot() as u32);
        }
        match self.arch {
            Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::SmolLm3 | Arch::Opt => {}
            Arch::Phi3 => {
                w.u32(&key("rope.scaling.original_context_length"), self.n_ctx / 4);
                w.f32(&key("rope.scaling.attn_factor"), 1.1);
            }
            Arch::Mistral3 => {
                w.f32(&key("attention.temperature_scale"), 0.1);
                w.u32(&key("rope.scaling.original_context_length"), 128);
                w.f32(&key("rope.scaling.yarn_beta_fast"), 16.0);
                w.f32(&key("rope.scaling.yarn_beta_slow"), 2.0);
                w.f32(&key("rope.scaling.yarn_log_multiplier"), 1.0);
            }
            Arch::Granite => {
                w.f32(&key("logit_scale"), 2.0);
                w.f32(&key("residual_scale"), 0.7);
                w.f32(&key("embedding_scale"), 3.0);
                w.f32(&key("attention.scale"), 0.2);
            }
            Arch::Qwen3Moe | Arch::GptOss => {
                if self.arch == Arch::GptOss {
                    w.u32(&key("attention.sliding_window"), self.window);
                }
                w.u32(&key("expert_count"), self.experts[0] as u32);
                w.u32(&key("expert_used_count"), self.experts[1] as u32);
                w.u32(&key("expert_feed_forward_length"), self.n_ff as u32 / 2);
            }
            Arch::Mixtral => {
                w.u32(&key("expert_count"), self.experts[0] as u32);
                w.u32(&key("expert_used_count"), self.experts[1] as u32);
                w.u32(&key("feed_forward_length"), self.n_ff as u32 / 2);
            }
            Arch::Mamba => {
                for (name, n) in [("conv_kernel", 4), ("inner_size", 2 * self.n_embd as u32), ("state_size", 16)] {
                    w.u32(&key(&format!("ssm.{name}")), n);
                }
                w.u32(&key("ssm.time_step_rank"), 8);
                w.u32(&key("attention.head_count"), 0);
                w.u32(&key("attention.head_count_kv"), 0);
            }
            Arch::Lfm2 => {
                w.u32(&key("shortconv.l_cache"), 3);
                let heads = |il: usize| if self.is_recurrent(il) { 0 } else { self.n_head_kv as u32 };
                let heads = (0..self.n_layer).map(|il| heads(il).to_le_bytes().to_vec()).collect::<Vec<_>>();
                w.array(&key("attention.head_count_kv"), U32, heads.into_iter());
            }
            Arch::Gemma2 => {
                w.u32(&key("attention.sliding_window"), self.window);
                w.f32(&key("attn_logit_softcapping"), 5.0);
                w.f32(&key("final_logit_softcapping"), 8.0);
            }
            Arch::Gemma3 | Arch::Gemma4 => {
                w.u32(&key("attention.sliding_window"), self.window);
                let windowed = (0..self.n_layer).map(|il| vec![u8::from(il % 2 == 0)]).collect::<Vec<_>>();
                w.array(&key("attention.sliding_window_pattern"), BOOL, windowed.into_iter());
                w.f32(&key("rope.freq_base"), 500000.0);
                if self.arch == Arch::Gemma4 {
                    for (name, n) in [
                        ("attention.key_length", self.head_width(1)),
                        ("attention.value_length", self.head_width(1)),
                        ("attention.key_length_swa", self.head_width(0)),
                        ("attention.value_length_swa", self.head_width(0)),
                        ("rope.dimension_count", self.head_width(1)),
                        ("rope.dimension_count_swa", self.head_width(0)),
                        ("attention.shared_kv_layers", self.n_layer - self.n_layer_kv()),
                        ("embedding_length_per_layer_input", PER_LAYER),
                    ] {
                        w.u32(&key(name), n as u32);
                    }
                    w.f32(&key("final_logit_softcapping"), 8.0);
                }
            }
        }
        let norm = if self.arch == Arch::Opt { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
        w.f32(&key(&format!("attention.{norm}")), 1e-5);
        match self.rope {
            RopeKind::Plain => {}
            RopeKind::Linear | RopeKind::Yarn => {
                let kind = if self.rope == RopeKind::Linear { "linear" } else { "yarn" };
                w.str(&key("rope.scaling.type"), kind);
                w.f32(&key("rope.scaling.factor"), 4.0);
                w.u32(&key("rope.scaling.original_context_length"), self.n_ctx / 4);
            }
            RopeKind::Llama3 => w.f32(&key("rope.freq_base"), 500000.0),
        }
        // A SentencePiece vocabulary: control tokens, bytes, letters, then words that never occur.
        let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
        tokens.push("\u{2581}".to_owned());
        tokens.extend(('a'..='z').map(String::from));
        assert!(tokens.len() <= self.n_vocab, "a vocabulary of {} at least", tokens.len());
        tokens.extend((tokens.len()..self.n_vocab).map(|i| format!("word{i}")));
        let types = (0..self.n_vocab).map(|i| match i {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        });
        w.str("tokenizer.ggml.model", "llama");
        w.array("tokenizer.ggml.tokens", STRING, tokens.iter().map(string));
        w.array("tokenizer.ggml.scores", F32, (0..self.n_vocab).map(|i| (-(i as f32)).to_le_bytes().to_vec()));
        w.array("tokenizer.ggml.token_type", I32, types.map(|t: i32| t.to_le_bytes().to_vec()));
        w.u32("tokenizer.ggml.bos_token_id", 1);
        w.u32("tokenizer.ggml.eos_token_id", 2);
    }

    /// Layers that make keys and values: of five, the last reads those of another.
    fn n_layer_kv(&self) -> usize {
        if self.arch == Arch::Gemma4 && self.n_layer > 4 { self.n_layer - 1 } else { self.n_layer }
    }

    /// Channels of the MLP of layer `il`.
    fn n_ff(&self, il: usize) -> usize {
        if self.arch == Arch::Gemma4 && il == 1 { 2 * self.n_ff } else { self.n_ff }
    }

    /// Width of a head of layer `il`.
    fn head_width(&self, il: usize) -> usize {
        let n = self.n_embd_head();
        if self.arch == Arch::Gemma4 && il % 2 == 1 { 2 * n } else { n }
    }

    /// Width of a head.
    fn n_embd_head(&self) -> usize {
        self.n_embd_head.unwrap_or(self.n_embd / self.n_head)
    }

    /// Dimensions of a head that are rotated.
    fn n_rot(&self) -> usize {
        let n = self.n_embd_head();
        if self.arch == Arch::Phi3 { n / 4 * 3 } else { n }
    }

    /// Whether a layer has a state instead of attention.
    fn is_recurrent(&self, il: usize) -> bool {
        self.arch == Arch::Mamba || self.arch == Arch::Lfm2 && il.is_multiple_of(2)
    }

    /// Names, shapes and types.
    fn tensors(&self) -> Vec<(String, Vec<usize>, Type)> {
        let n_embd = self.n_embd;
        let mut tensors = vec![("token_embd.weight".to_owned(), vec![n_embd, self.n_vocab], self.ty)];
        if self.arch == Arch::Opt {
            tensors.push(("position_embd.weight".to_owned(), vec![n_embd, self.n_ctx as usize], Type::F32));
            tensors.push(("output_norm.bias".to_owned(), vec![n_embd], Type::F32));
        }
        if self.arch == Arch::Gemma4 {
            tensors.push((
                "per_layer_token_embd.weight".to_owned(),
                vec![PER_LAYER * self.n_layer, self.n_vocab],
                self.ty,
            ));
            tensors.push(("per_layer_model_proj.weight".to_owned(), vec![n_embd, PER_LAYER * self.n_layer], self.ty));
            tensors.push(("per_layer_proj_norm.weight".to_owned(), vec![PER_LAYER], Type::F32));
            tensors.push(("rope_freqs.weight".to_owned(), vec![self.head_width(1) / 2], Type::F32));
        }
        if self.rope == RopeKind::Llama3 {
            tensors.push(("rope_freqs.weight".to_owned(), vec![self.n_embd_head() / 2], Type::F32));
        }
        if self.arch == Arch::Phi3 {
            for name in ["long", "short"] {
                tensors.push((format!("rope_factors_{name}.weight"), vec![self.n_rot() / 2], Type::F32));
            }
        }
        for il in 0..self.n_layer {
            let (n_ff, head) = (self.n_ff(il), self.head_width(il));
            let (n_q, n_kv) = (head * self.n_head, head * self.n_head_kv);
            let mut gain = |name: &str, n| tensors.push((format!("blk.{il}.{name}.weight"), vec![n], Type::F32));
            gain("attn_norm", n_embd);
            match self.arch {
                Arch::Mamba => {}
                Arch::GptOss => {
                    gain("post_attention_norm", n_embd);
                    gain("attn_sinks", self.n_head);
                }
                _ => gain("ffn_norm", n_embd),
            }
            let has_head_norms =
                matches!(self.arch, Arch::Qwen3 | Arch::Gemma3 | Arch::Gemma4 | Arch::Qwen3Moe | Arch::Lfm2);
            if has_head_norms && !self.is_recurrent(il) {
                gain("attn_q_norm", head);
                if il < self.n_layer_kv() || self.tied {
                    gain("attn_k_norm", head);
                }
            }
            if self.arch == Arch::Gemma4 {
                gain("post_norm", n_embd);
                gain("layer_output_scale", 1);
            }
            if self.arch.is_gemma() {
                gain("post_attention_norm", n_embd);
                gain("post_ffw_norm", n_embd);
            }
            if self.arch == Arch::Opt {
                for name in ["attn_norm", "ffn_norm"] {
                    tensors.push((format!("blk.{il}.{name}.bias"), vec![n_embd], Type::F32));
                }
            }
            let output = ("attn_output", n_q, n_embd);
            let down = ("ffn_down", n_ff, n_embd);
            let matrices = match self.arch {
                Arch::Gemma4 => {
                    let mut matrices = vec![
                        ("attn_q", n_embd, n_q),
                        output,
                        ("ffn_gate", n_embd, n_ff),
                        ("ffn_up", n_embd, n_ff),
                        down,
                        ("inp_gate", n_embd, PER_LAYER),
                        ("proj", PER_LAYER, n_embd),
                    ];
                    // Layers without a window make values by the keys' matrix.
                    let kv = [("attn_k", n_embd, n_kv), ("attn_v", n_embd, n_kv)];
                    // Those that read another's may have their own all the same, of no use.
                    let n_made = if il < self.n_layer_kv() || self.tied { 2 - il % 2 } else { 0 };
                    matrices.extend(&kv[..n_made]);
                    matrices
                }
                Arch::Mamba => vec![("ssm_in", n_embd, 4 * n_embd), ("ssm_out", 2 * n_embd, n_embd)],
                Arch::Opt => vec![
                    ("attn_q", n_embd, n_q),
                    ("attn_k", n_embd, n_kv),
                    ("attn_v", n_embd, n_kv),
                    output,
                    ("ffn_up", n_embd, n_ff),
                    down,
                ],
                Arch::Lfm2 if self.is_recurrent(il) => vec![
                    ("shortconv.in_proj", n_embd, 3 * n_embd),
                    ("shortconv.out_proj", n_embd, n_embd),
                    ("ffn_gate", n_embd, n_ff),
                    ("ffn_up", n_embd, n_ff),
                    down,
                ],
                Arch::Qwen3Moe | Arch::Mixtral | Arch::GptOss => {
                    vec![("attn_q", n_embd, n_q), ("attn_k", n_embd, n_kv), ("attn_v", n_embd, n_kv), output]
                }
                Arch::Phi3 => {
                    vec![("attn_qkv", n_embd, n_q + 2 * n_kv), output, ("ffn_up", n_embd, 2 * n_ff), down]
                }
                _ => vec![
                    ("attn_q", n_embd, n_q),
                    ("attn_k", n_embd, n_kv),
                    ("attn_v", n_embd, n_kv),
                    output,
                    ("ffn_gate", n_embd, n_ff),
                    ("ffn_up", n_embd, n_ff),
                    down,
                ],
            };
            for (name, n_in, n_out) in matrices {
                tensors.push((format!("blk.{il}.{name}.weight"), vec![n_in, n_out], self.ty));
                let of_qkv = self.arch == Arch::Qwen2 && ["attn_q", "attn_k", "attn_v"].contains(&name);
                if self.biases && self.arch != Arch::Phi3 || of_qkv || matches!(self.arch, Arch::Opt | Arch::GptOss) {
                    tensors.push((format!("blk.{il}.{name}.bias"), vec![n_out], Type::F32));
                }
            }
        }
        for il in 0..self.n_layer {
            let n_ff = self.n_ff(il);
            let mut push =
                |name: &str, shape: &[usize], ty| tensors.push((format!("blk.{il}.{name}"), shape.to_vec(), ty));
            match self.arch {
                Arch::Qwen3Moe | Arch::Mixtral | Arch::GptOss => {
                    let n_expert = self.experts[0];
                    push("ffn_gate_inp.weight", &[n_embd, n_expert], Type::F32);
                    push("ffn_gate_exps.weight", &[n_embd, n_ff / 2, n_expert], self.ty);
                    push("ffn_up_exps.weight", &[n_embd, n_ff / 2, n_expert], self.ty);
                    push("ffn_down_exps.weight", &[n_ff / 2, n_embd, n_expert], self.ty);
                    if self.arch == Arch::GptOss {
                        push("ffn_gate_inp.bias", &[n_expert], Type::F32);
                        push("ffn_gate_exps.bias", &[n_ff / 2, n_expert], Type::F32);
                        push("ffn_up_exps.bias", &[n_ff / 2, n_expert], Type::F32);
                        push("ffn_down_exps.bias", &[n_embd, n_expert], Type::F32);
                    }
                }
                Arch::Mamba => {
                    let n_inner = 2 * n_embd;
                    push("ssm_conv1d.weight", &[4, n_inner], Type::F32);
                    push("ssm_conv1d.bias", &[n_inner], Type::F32);
                    push("ssm_x.weight", &[n_inner, 8 + 2 * 16], Type::F32);
                    push("ssm_dt.weight", &[8, n_inner], Type::F32);
                    push("ssm_dt.bias", &[n_inner], Type::F32);
                    push("ssm_a", &[16, n_inner], Type::F32);
                    push("ssm_d", &[n_inner], Type::F32);
                }
                Arch::Lfm2 if self.is_recurrent(il) => push("shortconv.conv.weight", &[3, n_embd], Type::F32),
                _ => {}
            }
        }
        let norm = if self.arch == Arch::Lfm2 { "token_embd_norm.weight" } else { "output_norm.weight" };
        tensors.push((norm.to_owned(), vec![n_embd], Type::F32));
        // These have no output matrix of their own.
        if !self.tied && !matches!(self.arch, Arch::Gemma2 | Arch::Opt) || self.arch == Arch::GptOss {
            tensors.push(("output.weight".to_owned(), vec![n_embd, self.n_vocab], self.ty));
        }
        tensors
    }

    /// The type of a matrix whose rows have `n_in` elements, as llama-quant.cpp chooses it for Q4_K_M.
    fn type_in_q4_k_m(&self, name: &str, n_in: usize, is_tied: bool) -> Type {
        let in_blocks = n_in.is_multiple_of(256);
        if name == "output.weight" || is_tied && name == "token_embd.weight" {
            return if in_blocks { Type::Q6_K } else { Type::Q8_0 };
        }
        let il: usize = name.strip_prefix("blk.").map_or(0, |rest| rest.split('.').next().unwrap().parse().unwrap());
        let eighth = self.n_layer / 8;
        let has_more_bits = il < eighth || il >= 7 * self.n_layer / 8 || (il - eighth) % 3 == 2;
        let is = |part: &str| name.contains(part);
        let has_8_experts = matches!(self.arch, Arch::Qwen3Moe | Arch::Mixtral) && self.experts[0] == 8;
        let ty = match has_8_experts {
            true if is("attn_k.") || is("attn_v.") => Type::Q8_0,
            true if is("attn_output") => Type::Q5_K,
            _ if has_more_bits && (is("attn_v.") || is("attn_qkv") || is("ffn_down")) => Type::Q6_K,
            _ => Type::Q4_K,
        };
        match ty {
            Type::Q4_K if !in_blocks => Type::Q5_0,
            Type::Q5_K if !in_blocks => Type::Q5_1,
            Type::Q6_K if !in_blocks => Type::Q8_0,
            ty => ty,
        }
    }

    fn data(&self, name: &str, shape: &[usize], ty: Type, random: &mut Random) -> Vec<u8> {
        let n = shape[0];
        if name.starts_with("rope_") {
            let largest = if name.contains("short") { 2.0 } else { 8.0 };
            let factors: Vec<f32> = (0..n).map(|i| if i < n / 2 { 1.0 } else { largest }).collect();
            return ggml::quantize(ty, &factors, n);
        }
        if name.ends_with("ssm_a") {
            // States fade.
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| -random.normal().abs()).collect();
            return ggml::quantize(ty, &values, n);
        }
        let n_rows: usize = shape[1..].iter().product();
        if shape.len() == 1 {
            let is_head_norm = name.ends_with("attn_q_norm.weight") || name.ends_with("attn_k_norm.weight");
            let mean = match name {
                // It has no other factor on scores.
                _ if is_head_norm && self.arch == Arch::Gemma4 => 0.3,
                _ if name.ends_with("norm.weight") || name.ends_with("scale.weight") => 1.0,
                _ => 0.0,
            };
            let values: Vec<f32> = (0..n).map(|_| mean + 0.1 * random.normal()).collect();
            return ggml::quantize(ty, &values, n);
        }
        // Activations keep a variance near one, so that logits are neither flat nor a single peak.
        let sigma =
            if name == "token_embd.weight" || name == "position_embd.weight" { 1.0 } else { 1.5 / (n as f32).sqrt() };
        let distinct = n_rows.min(self.distinct_rows);
        let values: Vec<f32> = (0..n * distinct).map(|_| sigma * random.normal()).collect();
        let rows = ggml::quantize(ty, &values, n);
        let mut data = rows.clone();
        while data.len() < rows.len() / distinct * n_rows {
            let more = rows.len().min(rows.len() / distinct * n_rows - data.len());
            data.extend_from_slice(&rows[..more]);
        }
        data
    }
}

/// Value types of the GGUF specification.
pub const U8: u32 = 0;
pub const U16: u32 = 2;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
pub const I64: u32 = 11;

/// A GGUF file in its parts, any of which may be wrong. gguf-rs has a writer, but it knows the sizes of some types wrongly (BF16,
/// IQ4_NL), and writes no wrong files.
#[derive(Debug, Clone)]
pub struct Doc {
    pub magic: Vec<u8>,
    pub version: u32,
    /// As many as there are, unless they are said to be more or fewer
    pub n_entries: Option<u64>,
    pub n_tensors: Option<u64>,
    /// Key, type, bytes of the value
    pub entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<TensorDoc>,
    pub alignment: usize,
}

/// A tensor of a [`Doc`].
#[derive(Debug, Clone)]
pub struct TensorDoc {
    pub name: Vec<u8>,
    pub ne: Vec<u64>,
    pub ty: u32,
    pub data: Vec<u8>,
    /// Where it is said to be; where it is, unless given
    pub offset: Option<u64>,
}

impl Default for Doc {
    fn default() -> Doc {
        let (n_entries, n_tensors, entries, tensors) = Default::default();
        Doc { magic: b"GGUF".to_vec(), version: 3, n_entries, n_tensors, entries, tensors, alignment: 32 }
    }
}

/// A string as it is in a file.
pub fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

/// An array as it is in a file.
pub fn array(ty: u32, values: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut out = [ty.to_le_bytes().as_slice(), &(values.len() as u64).to_le_bytes()].concat();
    values.for_each(|v| out.extend(v));
    out
}

impl Doc {
    /// Sets a value, or adds it.
    pub fn set(&mut self, key: &str, ty: u32, value: impl AsRef<[u8]>) {
        let value = value.as_ref().to_vec();
        match self.entries.iter_mut().find(|e| e.0 == key.as_bytes()) {
            Some(entry) => (entry.1, entry.2) = (ty, value),
            None => self.entries.push((key.into(), ty, value)),
        }
    }

    pub fn str(&mut self, key: &str, value: &str) {
        self.set(key, STRING, string(value));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.set(key, U32, value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.set(key, F32, value.to_le_bytes());
    }

    pub fn array(&mut self, key: &str, ty: u32, values: impl ExactSizeIterator<Item = Vec<u8>>) {
        self.set(key, ARRAY, array(ty, values));
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &str) {
        self.entries.retain(|e| e.0 != key.as_bytes());
    }

    /// A tensor.
    pub fn tensor(&mut self, name: &str) -> &mut TensorDoc {
        self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Everything before the data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.clone();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, ty, value) in &self.entries {
            out.extend(string(key));
            out.extend(ty.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0;
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.ne.len() as u32).to_le_bytes());
            t.ne.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(t.ty.to_le_bytes());
            out.extend(t.offset.unwrap_or(offset).to_le_bytes());
            offset += t.data.len().next_multiple_of(self.alignment) as u64;
        }
        out
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&t.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014) and the Box-Muller transform.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
}
