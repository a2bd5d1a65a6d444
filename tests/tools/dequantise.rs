//! Writes a copy of a model with every matrix in F32: what the reference computes with.
//!
//! `cargo run --release --example dequantise -- models/SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct.F32.gguf`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Parser;
use ggml::Type;
use pp_run::gguf::Gguf;

#[derive(Parser)]
struct Args {
    /// The model
    model: PathBuf,
    /// The copy
    out: PathBuf,
}

/// Writes the copy.
pub fn dequantise(model: &Path, out: &Path) {
    const ALIGNMENT: u64 = 32;
    let gguf = Gguf::open(model).unwrap();
    let mut head = gguf.header_without_tensors();
    // The count comes after magic and version.
    head[8..16].copy_from_slice(&(gguf.tensors().len() as u64).to_le_bytes());
    let mut offset = 0u64;
    for t in gguf.tensors() {
        head.extend((t.name.len() as u64).to_le_bytes());
        head.extend(t.name.as_bytes());
        head.extend(t.n_dims.to_le_bytes());
        t.ne[..t.n_dims as usize].iter().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(Type::F32.id().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += (4 * t.n_elements()).next_multiple_of(ALIGNMENT);
    }
    let temporary = out.with_extension("tmp");
    let mut file = BufWriter::new(File::create(&temporary).unwrap());
    let mut position = head.len() as u64;
    file.write_all(&head).unwrap();
    for t in gguf.tensors() {
        let gap = position.next_multiple_of(ALIGNMENT) - position;
        file.write_all(&vec![0; gap as usize]).unwrap();
        let row = t.ty.row_bytes(t.ne[0] as usize).unwrap();
        let mut values = vec![0.0f32; t.ne[0] as usize];
        for bytes in gguf.data(t).chunks_exact(row) {
            ggml::dequantize_row(t.ty, bytes, &mut values);
            let out: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            file.write_all(&out).unwrap();
        }
        position += gap + 4 * t.n_elements();
    }
    file.flush().unwrap();
    drop(file);
    std::fs::rename(&temporary, out).unwrap();
}

#[allow(dead_code, reason = "tests use the function alone")]
fn main() {
    let args = Args::parse();
    dequantise(&args.model, &args.out);
}
