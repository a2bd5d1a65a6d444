//! Models of architecture `llama` made of random numbers, from a seed: tiny ones for tests, wide ones for benchmarks.

use std::path::Path;

use ggml::Type;
use gguf_rs::writer::{GGUFWriter, MetadataValue, TensorInfo};

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

/// What to make.
#[derive(Debug, Clone)]
pub struct Forge {
    pub ty: Type,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_ff: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub n_layer: usize,
    pub n_ctx: u32,
    /// The output matrix is the embedding table.
    pub tied: bool,
    pub biases: bool,
    pub rope: RopeKind,
    /// Rows of a matrix repeat after so many: what benchmarks measure does not depend on them.
    pub distinct_rows: usize,
    pub seed: u64,
}

impl Forge {
    /// A model of two layers, 512 tokens and width 256.
    pub fn tiny(ty: Type, n_head: usize, n_head_kv: usize) -> Forge {
        Forge {
            ty,
            n_vocab: 512,
            n_embd: 256,
            n_ff: 512,
            n_head,
            n_head_kv,
            n_layer: 2,
            n_ctx: 2048,
            tied: false,
            biases: false,
            rope: RopeKind::Plain,
            distinct_rows: usize::MAX,
            seed: 1,
        }
    }

    /// Writes the model.
    pub fn write(&self, path: &Path) {
        let mut writer = GGUFWriter::new(path, 3).unwrap();
        self.metadata(&mut writer);
        let tensors = self.tensors();
        for (name, shape, ty) in &tensors {
            let shape = shape.iter().map(|&n| n as u64).collect();
            writer.add_tensor(TensorInfo { name: name.clone(), shape, dtype: ty.id() });
        }
        writer.write().unwrap();
        let mut random = Random(self.seed);
        for (i, (name, shape, ty)) in tensors.iter().enumerate() {
            writer.write_tensor_data(i, &self.data(name, shape, *ty, &mut random)).unwrap();
        }
        writer.finalize().unwrap();
    }

    fn metadata(&self, w: &mut GGUFWriter) {
        w.add_metadata("general.architecture", "llama");
        w.add_metadata("general.name", "random");
        w.add_metadata_u32("llama.context_length", self.n_ctx);
        w.add_metadata_u32("llama.embedding_length", self.n_embd as u32);
        w.add_metadata_u32("llama.block_count", self.n_layer as u32);
        w.add_metadata_u32("llama.feed_forward_length", self.n_ff as u32);
        w.add_metadata_u32("llama.attention.head_count", self.n_head as u32);
        w.add_metadata_u32("llama.attention.head_count_kv", self.n_head_kv as u32);
        w.add_metadata_u32("llama.rope.dimension_count", (self.n_embd / self.n_head) as u32);
        w.add_metadata_f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        match self.rope {
            RopeKind::Plain => {}
            RopeKind::Linear | RopeKind::Yarn => {
                let kind = if self.rope == RopeKind::Linear { "linear" } else { "yarn" };
                w.add_metadata("llama.rope.scaling.type", kind);
                w.add_metadata_f32("llama.rope.scaling.factor", 4.0);
                w.add_metadata_u32("llama.rope.scaling.original_context_length", self.n_ctx / 4);
            }
            RopeKind::Llama3 => w.add_metadata_f32("llama.rope.freq_base", 500000.0),
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
        w.add_metadata("tokenizer.ggml.model", "llama");
        w.add_metadata_array("tokenizer.ggml.tokens", tokens.into_iter().map(MetadataValue::String).collect());
        w.add_metadata_array(
            "tokenizer.ggml.scores",
            (0..self.n_vocab).map(|i| MetadataValue::Float32(-(i as f32))).collect(),
        );
        w.add_metadata_array("tokenizer.ggml.token_type", types.map(MetadataValue::Int32).collect());
        w.add_metadata_u32("tokenizer.ggml.bos_token_id", 1);
        w.add_metadata_u32("tokenizer.ggml.eos_token_id", 2);
    }

    /// Names, shapes and types.
    fn tensors(&self) -> Vec<(String, Vec<usize>, Type)> {
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let n_kv = self.n_embd / self.n_head * self.n_head_kv;
        let mut tensors = vec![("token_embd.weight".to_owned(), vec![n_embd, self.n_vocab], self.ty)];
        if self.rope == RopeKind::Llama3 {
            tensors.push(("rope_freqs.weight".to_owned(), vec![self.n_embd / self.n_head / 2], Type::F32));
        }
        for il in 0..self.n_layer {
            let mut gain = |name: &str| tensors.push((format!("blk.{il}.{name}.weight"), vec![n_embd], Type::F32));
            gain("attn_norm");
            gain("ffn_norm");
            let matrices = [
                ("attn_q", n_embd, n_embd),
                ("attn_k", n_embd, n_kv),
                ("attn_v", n_embd, n_kv),
                ("attn_output", n_embd, n_embd),
                ("ffn_gate", n_embd, n_ff),
                ("ffn_up", n_embd, n_ff),
                ("ffn_down", n_ff, n_embd),
            ];
            for (name, n_in, n_out) in matrices {
                tensors.push((format!("blk.{il}.{name}.weight"), vec![n_in, n_out], self.ty));
                if self.biases {
                    tensors.push((format!("blk.{il}.{name}.bias"), vec![n_out], Type::F32));
                }
            }
        }
        tensors.push(("output_norm.weight".to_owned(), vec![n_embd], Type::F32));
        if !self.tied {
            tensors.push(("output.weight".to_owned(), vec![n_embd, self.n_vocab], self.ty));
        }
        tensors
    }

    fn data(&self, name: &str, shape: &[usize], ty: Type, random: &mut Random) -> Vec<u8> {
        let n = shape[0];
        if name == "rope_freqs.weight" {
            let factors: Vec<f32> = (0..n).map(|i| if i < n / 2 { 1.0 } else { 8.0 }).collect();
            return ggml::quantize(ty, &factors, n);
        }
        let &[_, n_rows] = shape else {
            let mean = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let values: Vec<f32> = (0..n).map(|_| mean + 0.1 * random.normal()).collect();
            return ggml::quantize(ty, &values, n);
        };
        // Activations keep a variance near one, so that logits are neither flat nor a single peak.
        let sigma = if name == "token_embd.weight" { 1.0 } else { 1.5 / (n as f32).sqrt() };
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
