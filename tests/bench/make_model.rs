//! Writes a model of random numbers for benchmarks: LLaMA-2-7B's width, a few layers.
//!
//! `cargo run --release --example make_model -- --type Q4_0 --layers 4 --out models/wide-Q4_0.gguf`
//!
//! All matrices are of the one type, as in llama.cpp's pure quantisations. Rows of a matrix repeat: what is measured does not
//! depend on the numbers, and a model takes seconds to make.

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../common/forge.rs"]
mod forge;

use std::path::PathBuf;

use clap::Parser;
use forge::{Arch, Forge, RopeKind};
use ggml::Type;

#[derive(Parser)]
struct Args {
    /// Type of the matrices: F16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q6_K
    #[arg(long = "type", default_value = "Q4_0")]
    ty: String,
    /// Number of layers
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// The file
    #[arg(long)]
    out: PathBuf,
}

fn main() {
    let args = Args::parse();
    let known = [Type::F16, Type::Q8_0, Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q4_K, Type::Q6_K];
    let Some(ty) = known.into_iter().find(|t| t.name() == args.ty) else {
        eprintln!("make_model: unknown type '{}'", args.ty);
        std::process::exit(2);
    };
    let forge = Forge {
        arch: Arch::Llama,
        ty,
        n_vocab: 1024,
        n_embd: 4096,
        n_ff: 11008,
        n_head: 32,
        n_head_kv: 32,
        n_embd_head: None,
        n_layer: args.layers,
        n_ctx: 4096,
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
