//! `pp-run show`: what is in a file.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

use ggml::Type;
use gguf_rs::{ByteOrder, GGUFContainer};
use serde_json::{Value, json};

use super::output::print;
use crate::engine::{libllama, runs_on_own};
use crate::error::{Error, Result, escape};
use crate::gguf::{Gguf, TensorInfo, Value as MetadataValue};
use crate::model::{LayerSizes, RopeOptions, RunBy, read_hparams};
use crate::system::memory;
use crate::weights::by_kernel;

#[derive(Debug, Clone)]
pub struct Options {
    /// The GGUF file.
    pub path: PathBuf,
    /// List the tensors too.
    pub tensors: bool,
    /// List what can be pruned.
    pub prunable: bool,
    /// One JSON object instead of text.
    pub json: bool,
}

/// Elements of an array that are shown.
const SHOWN: usize = 6;

/// Prints an overview, the metadata, and with `--tensors` the tensors.
pub fn run(options: &Options) -> Result<()> {
    let gguf = Gguf::open(&options.path)?;
    if options.prunable {
        return print(&prunable(&gguf)?);
    }
    let metadata = metadata(&gguf)?;
    if options.json {
        let tensors: Vec<Value> = gguf.tensors().iter().map(|t| tensor_json(&gguf, t)).collect();
        let mut object = json!({
            "path": options.path.display().to_string(),
            "file_bytes": gguf.file_bytes(),
            "version": gguf.version(),
            "architecture": gguf.metadata().architecture(),
            "n_params": gguf.n_params(),
            "n_tensors": gguf.tensors().len(),
            "types": types(&gguf).into_iter().map(|(name, (count, bytes))| (name, json!({"tensors": count, "bytes": bytes}))).collect::<serde_json::Map<_, _>>(),
            "metadata": metadata,
        });
        if options.tensors {
            object["tensors"] = tensors.into();
        }
        let text = serde_json::to_string_pretty(&object).map_err(|e| Error::failed(e.to_string()))?;
        return print(&(text + "\n"));
    }
    let mut out = overview(&gguf);
    out.push_str("\nmetadata\n");
    for (key, value) in &metadata {
        out.push_str(&format!("  {:<44} {}\n", escape(key), escape(&brief(value))));
    }
    if options.tensors {
        out.push_str(&format!("\n{:<36} {:<8} {:<28} {:>14} {:>16}\n", "tensor", "type", "shape", "bytes", "position"));
        for t in gguf.tensors() {
            let shape: Vec<String> = t.ne[..t.n_dims as usize].iter().map(u64::to_string).collect();
            out.push_str(&format!(
                "{:<36} {:<8} {:<28} {:>14} {:>16}\n",
                escape(&t.name),
                t.ty.name(),
                shape.join(" x "),
                t.n_bytes,
                gguf.position(t)
            ));
        }
    }
    print(&out)
}

/// What the pruning pass can leave out, block by block; alike layers share a line.
pub fn prunable(gguf: &Gguf) -> Result<String> {
    let (_, h) = read_hparams(gguf, &RopeOptions::default())?;
    let ty =
        |il: usize, name: &str| gguf.tensor(&format!("blk.{il}.{name}.weight")).map_or("none".into(), |t| t.ty.name());
    // What lies with others in one tensor is of that tensor's type.
    let rows = |il: usize, name: &str, fused: &str| {
        let has = gguf.tensor(&format!("blk.{il}.{name}.weight")).is_some();
        ty(il, if has { name } else { fused })
    };
    let has_gate = gguf.tensor("blk.0.ffn_gate.weight").is_some();
    let is_plain = !has_gate && gguf.tensor("blk.0.ffn_up.weight").is_some_and(|t| t.ne[1] == h.layers[0].n_ff as u64);
    let columns = |il: usize, name: &str| {
        let tensor = gguf.tensor(&format!("blk.{il}.{name}.weight"));
        let quantised = tensor.is_some_and(|t| t.ty.is_quantized());
        ty(il, name) + if quantised { ", its columns as Q8_0" } else { "" }
    };
    let line = |il: usize| {
        let LayerSizes { n_head_kv, n_embd_head, n_ff, shares_kv_of } = h.layers[il];
        let kv = match shares_kv_of {
            Some(of) => format!("keys and values of layer {of}: all heads are left out, or none"),
            None if n_head_kv == h.n_head => {
                "multi-head: keys and values go with their heads when whole texts are scored; generation keeps them"
                    .into()
            }
            None => format!("grouped-query: {n_head_kv} heads of keys and values, which stay whole"),
        };
        let attention = format!(
            "attention: {} query heads of width {n_embd_head}, queries {}, output {}\n  {kv}",
            h.n_head,
            rows(il, "attn_q", "attn_qkv"),
            columns(il, "attn_output")
        );
        if h.experts.is_some() {
            return format!("{attention}\n  experts, which run whole");
        }
        let gate = if is_plain { String::new() } else { format!("gate {}, ", rows(il, "ffn_gate", "ffn_up")) };
        format!("{attention}\n  MLP: {n_ff} channels, {gate}up {}, down {}", ty(il, "ffn_up"), columns(il, "ffn_down"))
    };
    let mut out = format!("{} layers\n", h.n_layer);
    let n_ff_matrices = if h.experts.is_some() { 0 } else { 3 - usize::from(is_plain) };
    let of_layer = |il: usize| h.n_embd * (2 * h.n_embd_q(il) + n_ff_matrices * h.layers[il].n_ff);
    let prunable: usize = (0..h.n_layer).map(of_layer).sum();
    let total = gguf.n_params();
    out.push_str(&format!(
        "{:.1}% of the model's {:.1} M parameters can be left out in part\n",
        100.0 * prunable as f64 / total.max(1) as f64,
        total as f64 / 1e6
    ));
    let mut first = 0;
    while first < h.n_layer {
        let same = (first..h.n_layer).take_while(|&il| line(il) == line(first)).count();
        let last = first + same - 1;
        let layers = if last > first { format!("layers {first} to {last}") } else { format!("layer {first}") };
        out.push_str(&format!("\n{layers}\n  {}\n", line(first)));
        first = last + 1;
    }
    Ok(out)
}

/// The metadata as gguf-rs decodes it, from a header that has passed our check.
fn metadata(gguf: &Gguf) -> Result<BTreeMap<String, Value>> {
    let header = gguf.header_without_tensors();
    // gguf-rs begins to read behind the magic, which has four bytes.
    let mut container = GGUFContainer::new(ByteOrder::LE, Box::new(Cursor::new(header[4..].to_vec())), u64::MAX);
    let model = container.decode().map_err(|e| Error::malformed(format!("gguf-rs: {e}")).in_file(gguf.path()))?;
    Ok(model.metadata().clone())
}

/// Number and bytes of tensors by type.
fn types(gguf: &Gguf) -> BTreeMap<String, (usize, u64)> {
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for t in gguf.tensors() {
        let entry = types.entry(t.ty.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + t.n_bytes);
    }
    types
}

/// What the model is, in short.
pub fn overview(gguf: &Gguf) -> String {
    let meta = gguf.metadata();
    let arch = meta.architecture();
    // Where there is one for each layer: what there is once, if all are the same.
    let number = |key: &str| {
        let key = format!("{arch}.{key}");
        let Some(MetadataValue::Array(array)) = meta.get(&key) else {
            return meta.u32(&key).ok().flatten().map(|n| n.to_string());
        };
        array.ty.size()?;
        let mut numbers: Vec<String> =
            array.values(gguf.header()).filter_map(|v| v.as_i128()).map(|n| n.to_string()).collect();
        if numbers.iter().all(|n| *n == numbers[0]) {
            numbers.truncate(1);
        }
        Some(numbers.join(", "))
    };
    let real = |key: &str| meta.f32(&format!("{arch}.{key}")).ok().flatten().map(|n| n.to_string());
    let text = |key: &str| meta.str(key).ok().flatten().map(str::to_owned);
    let total = gguf.n_bytes();
    let types: Vec<String> = types(gguf)
        .into_iter()
        .map(|(name, (count, bytes))| format!("{name} {:.1} % ({count})", 100.0 * bytes as f64 / total.max(1) as f64))
        .collect();
    let mut quantised: Vec<Type> = gguf.tensors().iter().map(|t| t.ty).filter(|ty| ty.is_quantized()).collect();
    quantised.sort_by_key(|ty| ty.id());
    quantised.dedup();
    let kernels = Some(by_kernel(&quantised).join("; ")).filter(|k| !k.is_empty() && runs_on_own(gguf, RunBy::Auto));
    let tokens =
        meta.array("tokenizer.ggml.tokens", &[crate::gguf::ValueType::Str]).ok().flatten().map(|a| a.len.to_string());
    let yes_no = |b: bool| Some(if b { "yes" } else { "no" }.to_owned());
    let files = if gguf.n_parts() > 1 { format!(" in {} files", gguf.n_parts()) } else { String::new() };
    let rows = [
        ("file", Some(gguf.path().display().to_string())),
        ("size", Some(format!("{}{files} (GGUF version {})", memory::human(gguf.file_bytes()), gguf.version()))),
        ("name", meta.lossy("general.name")),
        ("architecture", Some(arch.to_owned())),
        ("engine", engine(gguf)),
        ("parameters", Some(format!("{:.1} M in {} tensors", gguf.n_params() as f64 / 1e6, gguf.tensors().len()))),
        ("types", Some(types.join(", "))),
        ("kernels", kernels),
        ("context length", number("context_length")),
        ("layers", number("block_count")),
        ("embedding length", number("embedding_length")),
        ("feed-forward length", number("feed_forward_length")),
        ("heads", number("attention.head_count")),
        ("key/value heads", number("attention.head_count_kv")),
        ("RoPE base", real("rope.freq_base")),
        ("RoPE scaling", text(&format!("{arch}.rope.scaling.type"))),
        ("RoPE scaling factor", real("rope.scaling.factor")),
        ("tokenizer", text("tokenizer.ggml.model")),
        ("vocabulary", tokens),
        ("chat template", yes_no(meta.get("tokenizer.chat_template").is_some())),
    ];
    rows.iter().filter_map(|(name, value)| Some(format!("{name:<22} {}\n", escape(value.as_deref()?)))).collect()
}

/// Who runs the model; `None` if nobody does.
fn engine(gguf: &Gguf) -> Option<String> {
    let what = match (runs_on_own(gguf, RunBy::Auto), libllama::require_file(gguf)) {
        (true, _) => "pp-run: graphs, kernels and pruning of its own",
        (false, Ok(())) => "libllama: no pruning, no kernels of pp-run's own",
        (false, Err(_)) => return None,
    };
    Some(what.to_owned())
}

/// A value in one short line.
fn brief(value: &Value) -> String {
    match value {
        Value::String(s) if s.chars().count() > 80 => {
            format!("{}... ({} bytes)", s.chars().take(80).collect::<String>(), s.len())
        }
        Value::String(s) => s.clone(),
        Value::Array(a) => {
            let shown: Vec<String> = a.iter().take(SHOWN).map(brief).collect();
            let more = if a.len() > SHOWN { ", ..." } else { "" };
            format!("[{}{more}] ({})", shown.join(", "), a.len())
        }
        other => other.to_string(),
    }
}

fn tensor_json(gguf: &Gguf, t: &TensorInfo) -> Value {
    json!({
        "name": t.name,
        "type": t.ty.name(),
        "shape": t.ne[..t.n_dims as usize],
        "bytes": t.n_bytes,
        "position": gguf.position(t),
    })
}
