//! Writes a model that answers as a small one does, and is as wide as LLaMA-2-7B: 4096 inputs, 11008 channels. So what depends on the answer, such
//! as how many of its tokens a draft foretells, can be measured at a large model's speed, without a large model.
//!
//! `cargo run --release --example widen_model -- models/SmolLM2-135M-Instruct.Q4_1.gguf models/wide-smollm2.gguf --type Q4_K`
//!
//! Matrices are filled up with zeros: what is added to the residual stream is zero behind its first elements, and so is what is made of it. Norms
//! divide by the mean of more squares, which their weights make up for. Each head gets keys and values of its own, and heads that are added
//! attend to nothing. Quantising once more changes the model a little, as it does any other.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Parser;
use ggml::Type;
use pp_run::gguf::{Gguf, TensorInfo};

#[derive(Parser)]
struct Args {
    /// The small model: of architecture llama, with heads of 64 elements and an output that shares the embedding's matrix, as SmolLM2 is
    model: PathBuf,
    /// The wide one
    out: PathBuf,
    /// Type of the matrices
    #[arg(long = "type", default_value = "Q4_0")]
    ty: String,
}

const N_EMBD: usize = 4096;
const N_FF: usize = 11008;
const N_HEAD: usize = 64;
const N_EMBD_HEAD: usize = N_EMBD / N_HEAD;
const ALIGNMENT: usize = 32;

/// Overwrites a number of four bytes in a header of a file.
fn set(header: &mut [u8], key: &str, to: impl FnOnce([u8; 4]) -> [u8; 4]) {
    let at = header.windows(key.len()).position(|w| w == key.as_bytes()).unwrap_or_else(|| panic!("no {key}"));
    let value = at + key.len() + 4;
    let old = header[value..value + 4].try_into().expect("four bytes");
    header[value..value + 4].copy_from_slice(&to(old));
}

/// What becomes of a tensor.
struct Wide {
    n_in: usize,
    n_out: usize,
    /// Rows are of keys or values: each head gets those of its group
    is_kv: bool,
}

impl Wide {
    fn of(t: &TensorInfo, n_embd: usize) -> Wide {
        let wide = |n_in, n_out| Wide { n_in, n_out, is_kv: false };
        match t.name.rsplit('.').nth(1).expect("a name of a weight") {
            "token_embd" => wide(N_EMBD, t.ne[1] as usize),
            "attn_k" | "attn_v" => Wide { is_kv: true, ..wide(N_EMBD, N_EMBD) },
            "ffn_gate" | "ffn_up" => wide(N_EMBD, N_FF),
            "ffn_down" => wide(N_FF, N_EMBD),
            "attn_q" | "attn_output" => wide(N_EMBD, N_EMBD),
            _ if t.n_dims == 1 && t.ne[0] as usize == n_embd => wide(N_EMBD, 1),
            other => panic!("a tensor that such a model has not: {other}"),
        }
    }

    /// The old tensor's row that becomes row `row`, if it is not zeros; with so many heads of queries and of keys.
    fn old_row(&self, t: &TensorInfo, row: usize, heads: [usize; 2]) -> Option<usize> {
        match self.is_kv {
            true => {
                let head = row / N_EMBD_HEAD;
                (head < heads[0]).then(|| head * heads[1] / heads[0] * N_EMBD_HEAD + row % N_EMBD_HEAD)
            }
            false => (row < t.ne[1] as usize).then_some(row),
        }
    }
}

fn main() {
    let args = Args::parse();
    let mut known = (0..u32::from(u8::MAX)).filter_map(Type::from_id).filter(|t| ggml::can_quantize(*t));
    let ty = known.find(|t| t.name().eq_ignore_ascii_case(&args.ty)).expect("a type that ggml quantises to");
    let gguf = Gguf::open(&args.model).expect("a model");
    let mut header = gguf.header_without_tensors();
    // The count comes after magic and version.
    header[8..16].copy_from_slice(&(gguf.tensors().len() as u64).to_le_bytes());
    let (mut heads, mut n_embd) = ([0; 2], 0);
    let keys = ["llama.attention.head_count", "llama.attention.head_count_kv", "llama.embedding_length"];
    for (key, new) in keys.into_iter().zip([N_HEAD, N_HEAD, N_EMBD]) {
        // The name of the second begins with that of the first. What follows a name, the number of its type (4: an integer), tells them apart.
        let mut found = 0;
        let typed = [key.as_bytes(), &4u32.to_le_bytes()].concat();
        let at = header.windows(typed.len()).position(|w| w == typed).unwrap_or_else(|| panic!("no {key}"));
        set(&mut header[at..], key, |old| {
            found = u32::from_le_bytes(old) as usize;
            (new as u32).to_le_bytes()
        });
        match key {
            "llama.embedding_length" => n_embd = found,
            "llama.attention.head_count" => heads[0] = found,
            _ => heads[1] = found,
        }
    }
    assert!(n_embd == heads[0] * N_EMBD_HEAD, "heads of {N_EMBD_HEAD} elements");
    let share = n_embd as f32 / N_EMBD as f32;
    set(&mut header, "llama.feed_forward_length", |_| (N_FF as u32).to_le_bytes());
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    set(&mut header, epsilon, |old| (f32::from_le_bytes(old) * share).to_le_bytes());
    let type_of = |t: &TensorInfo| if t.n_dims == 1 { Type::F32 } else { ty };
    let bytes_of = |t: &TensorInfo| {
        let Wide { n_in, n_out, .. } = Wide::of(t, n_embd);
        type_of(t).row_bytes(n_in).expect("whole blocks") * n_out
    };
    let mut offset = 0;
    for t in gguf.tensors() {
        let Wide { n_in, n_out, .. } = Wide::of(t, n_embd);
        header.extend((t.name.len() as u64).to_le_bytes());
        header.extend(t.name.as_bytes());
        header.extend(t.n_dims.to_le_bytes());
        [n_in, n_out][..t.n_dims as usize].iter().for_each(|n| header.extend((*n as u64).to_le_bytes()));
        header.extend(type_of(t).id().to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += bytes_of(t).next_multiple_of(ALIGNMENT);
    }
    let temporary = args.out.with_extension("tmp");
    let mut file = BufWriter::new(File::create(&temporary).expect("a file"));
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    file.write_all(&header).expect("room on the disk");
    for t in gguf.tensors() {
        let wide = Wide::of(t, n_embd);
        let n_in = wide.n_in;
        let to = type_of(t);
        let zeros = ggml::quantize(to, &vec![0.0; n_in], n_in);
        let row_bytes = t.ty.row_bytes(t.ne[0] as usize).expect("whole blocks");
        let data = gguf.data(t);
        let mut values = vec![0.0f32; n_in];
        for row in 0..wide.n_out {
            let Some(old) = wide.old_row(t, row, heads) else {
                file.write_all(&zeros).expect("room on the disk");
                continue;
            };
            ggml::dequantize_row(t.ty, &data[old * row_bytes..][..row_bytes], &mut values[..t.ne[0] as usize]);
            if t.n_dims == 1 {
                values.iter_mut().for_each(|w| *w *= share.sqrt());
            }
            file.write_all(&ggml::quantize(to, &values, n_in)).expect("room on the disk");
        }
        let n_bytes = bytes_of(t);
        file.write_all(&vec![0; n_bytes.next_multiple_of(ALIGNMENT) - n_bytes]).expect("room on the disk");
    }
    file.flush().expect("room on the disk");
    drop(file);
    std::fs::rename(&temporary, &args.out).expect("the file takes its name");
}
