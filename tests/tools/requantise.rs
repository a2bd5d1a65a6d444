//! Writes a copy of a model with every matrix in another type: F32, which the reference computes with, or a smaller quantisation.
//!
//! `cargo run --release --example requantise -- models/SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct.F32.gguf`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Parser;
use ggml::Type;
use pp_run::gguf::{Gguf, TensorInfo};

#[derive(Parser)]
struct Args {
    /// The model
    model: PathBuf,
    /// The copy
    out: PathBuf,
    /// Type of the matrices; where it does not divide their rows, the one that llama.cpp takes in its place. Vectors are F32
    #[arg(long = "type", default_value = "F32")]
    ty: String,
}

/// What llama.cpp's quantisation takes where rows are not whole blocks of 256.
fn instead(ty: Type) -> Option<Type> {
    Some(match ty {
        Type::Q2_K | Type::Q3_K => Type::Q4_0,
        Type::Q4_K => Type::Q5_0,
        Type::Q5_K => Type::Q5_1,
        Type::Q6_K => Type::Q8_0,
        _ => return None,
    })
}

/// Writes the copy. A matrix keeps its type if neither `ty` nor what is taken in its place divides its rows.
pub fn requantise(model: &Path, out: &Path, ty: Type) {
    const ALIGNMENT: u64 = 32;
    let gguf = Gguf::open(model).unwrap();
    let type_of = |t: &TensorInfo| {
        let fits = |ty: &Type| ty.row_bytes(t.ne[0] as usize).is_some();
        match t.n_dims {
            1 => Type::F32,
            _ => Some(ty).filter(fits).or(instead(ty).filter(fits)).unwrap_or(t.ty),
        }
    };
    let bytes_of = |t: &TensorInfo| {
        let rows = t.n_elements() / t.ne[0];
        rows * type_of(t).row_bytes(t.ne[0] as usize).unwrap() as u64
    };
    let mut head = gguf.header_without_tensors();
    // The count comes after magic and version.
    head[8..16].copy_from_slice(&(gguf.tensors().len() as u64).to_le_bytes());
    let mut offset = 0u64;
    for t in gguf.tensors() {
        head.extend((t.name.len() as u64).to_le_bytes());
        head.extend(t.name.as_bytes());
        head.extend(t.n_dims.to_le_bytes());
        t.ne[..t.n_dims as usize].iter().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(type_of(t).id().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += bytes_of(t).next_multiple_of(ALIGNMENT);
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
            file.write_all(&ggml::quantize(type_of(t), &values, values.len())).unwrap();
        }
        position += gap + bytes_of(t);
    }
    file.flush().unwrap();
    drop(file);
    std::fs::rename(&temporary, out).unwrap();
}

#[allow(dead_code, reason = "tests use the function alone")]
fn main() {
    let args = Args::parse();
    let plain = [Type::F32, Type::F16, Type::Q8_0, Type::Q5_0, Type::Q4_0];
    let mut known = plain.into_iter().chain([Type::Q6_K, Type::Q5_K, Type::Q4_K, Type::Q3_K, Type::Q2_K]);
    let Some(ty) = known.find(|t| t.name() == args.ty) else {
        eprintln!("requantise: unknown type '{}'", args.ty);
        std::process::exit(2);
    };
    requantise(&args.model, &args.out, ty);
}
