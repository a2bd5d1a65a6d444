//! Writes a model of random numbers for benchmarks: as wide as a real model of its architecture, with a few layers.
//!
//! `cargo run --release --example make_model -- --type Q4_0 --layers 4 --out models/wide-Q4_0.gguf`
//!
//! All matrices are of the one type, as in llama.cpp's pure quantisations; `--type Q4_K_M` makes its mixture of two. Rows of a matrix repeat:
//! what is measured does not depend on the numbers, and a model takes seconds to make.

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../common/forge.rs"]
mod forge;

use std::path::PathBuf;

use clap::Parser;
use forge::{Arch, Forge, RopeKind};
use ggml::Type;

#[derive(Parser)]
struct Args {
    /// Type of the matrices, as ggml names it: Q8_0, Q4_0, Q4_K, MXFP4; or Q4_K_M, llama.cpp's mixture of Q4_K and Q6_K
    #[arg(long = "type", default_value = "Q4_0")]
    ty: String,
    /// Architecture: llama (LLaMA-2-7B's width), qwen3 (8B's), gemma3 (4B's), gemma4 (E4B's), phi3 (mini's), qwen3moe (30B-A3B's), gpt-oss
    /// (20B's)
    #[arg(long, default_value = "llama")]
    arch: String,
    /// Number of layers
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// The file
    #[arg(long)]
    out: PathBuf,
}

fn main() {
    let args = Args::parse();
    let mut known = (0..u32::from(u8::MAX)).filter_map(Type::from_id).filter(|t| ggml::can_quantize(*t));
    let is_q4_k_m = args.ty.eq_ignore_ascii_case("Q4_K_M");
    let name = if is_q4_k_m { "Q4_K" } else { &args.ty };
    let Some(ty) = known.find(|t| t.name().eq_ignore_ascii_case(name)) else {
        eprintln!("make_model: unknown type '{}'", args.ty);
        std::process::exit(2);
    };
    // Width of the embedding, channels, heads, key and value heads, width of a head.
    let (arch, [n_embd, n_ff, n_head, n_head_kv, n_embd_head]) = match args.arch.as_str() {
        "llama" => (Arch::Llama, [4096, 11008, 32, 32, 128]),
        "qwen3" => (Arch::Qwen3, [4096, 12288, 32, 8, 128]),
        "gemma3" => (Arch::Gemma3, [2560, 10240, 8, 4, 256]),
        "gemma4" => (Arch::Gemma4, [2560, 10240, 8, 2, 256]),
        "phi3" => (Arch::Phi3, [3072, 8192, 32, 32, 96]),
        // An expert has half of the channels.
        "qwen3moe" => (Arch::Qwen3Moe, [2048, 2 * 768, 32, 4, 128]),
        "gpt-oss" => (Arch::GptOss, [2880, 2 * 2880, 64, 8, 64]),
        other => {
            eprintln!("make_model: unknown architecture '{other}'");
            std::process::exit(2);
        }
    };
    let forge = Forge {
        arch,
        ty,
        is_q4_k_m,
        n_vocab: 1024,
        n_embd,
        n_ff,
        n_head,
        n_head_kv,
        n_embd_head: Some(n_embd_head),
        n_layer: args.layers,
        n_ctx: 4096,
        window: if arch == Arch::GptOss { 128 } else { 1024 },
        experts: if arch == Arch::GptOss { [32, 4] } else { [128, 8] },
        tied: false,
        biases: false,
        rope: RopeKind::Plain,
        distinct_rows: 64,
        seed: 7,
    };
    let temporary = args.out.with_extension("tmp");
    forge.write(&temporary);
    std::fs::rename(&temporary, &args.out).expect("the file takes its name");
}
