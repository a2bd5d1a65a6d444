//! A good model, of any architecture, whose metadata and tensors are changed in any way that a header can express.
#![no_main]

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../common/forge.rs"]
mod forge;

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use forge::{Arch, Doc, Forge, TensorDoc};
use ggml::Type;
use libfuzzer_sys::fuzz_target;
use pp_run::engine::libllama;
use pp_run::gguf::Gguf;
use pp_run::model::{RopeOptions, read_hparams};

#[derive(Debug, Arbitrary)]
enum Change {
    /// Another type and value for an entry
    Value(u8, u8, Vec<u8>),
    Number(u8, u64),
    Remove(u8),
    Twice(u8),
    Shape(u8, Vec<u64>),
    Type(u8, u32),
    Offset(u8, u64),
    Name(u8, Vec<u8>),
    Drop(u8),
    Again(u8),
    Data(u8, u16),
    Counts(Option<u64>, Option<u64>),
    Version(u32),
}

fn good(number: u8) -> Doc {
    static GOOD: OnceLock<Vec<Doc>> = OnceLock::new();
    let forge = |arch| Forge { arch, n_vocab: 300, n_embd: 32, n_ff: 64, n_layer: 1, ..Forge::tiny(Type::Q4_0, 2, 1) };
    let archs = Arch::ALL.into_iter().chain([Arch::Opt, Arch::Mamba, Arch::Lfm2]);
    let all = GOOD.get_or_init(|| archs.map(|arch| forge(arch).doc()).collect());
    all[usize::from(number) % all.len()].clone()
}

fn change(doc: &mut Doc, change: Change) {
    let entry = |doc: &Doc, i: u8| usize::from(i) % doc.entries.len().max(1);
    let tensor = |doc: &Doc, i: u8| usize::from(i) % doc.tensors.len().max(1);
    let mut with = |i: u8, f: &mut dyn FnMut(&mut TensorDoc)| {
        let i = tensor(doc, i);
        doc.tensors.get_mut(i).map(f);
    };
    match change {
        Change::Shape(i, ne) => with(i, &mut |t| t.ne = ne.clone()),
        Change::Type(i, ty) => with(i, &mut |t| t.ty = ty),
        Change::Offset(i, offset) => with(i, &mut |t| t.offset = Some(offset)),
        Change::Name(i, name) => with(i, &mut |t| t.name = name.clone()),
        Change::Data(i, n) => with(i, &mut |t| t.data.resize(n.into(), 0)),
        Change::Value(i, ty, value) => {
            let i = entry(doc, i);
            if let Some(e) = doc.entries.get_mut(i) {
                (e.1, e.2) = (ty.into(), value);
            }
        }
        Change::Number(i, n) => {
            let i = entry(doc, i);
            if let Some(e) = doc.entries.get_mut(i) {
                (e.1, e.2) = (forge::U64, n.to_le_bytes().to_vec());
            }
        }
        Change::Remove(i) => {
            let i = entry(doc, i);
            doc.entries.drain(i..doc.entries.len().min(i + 1));
        }
        Change::Twice(i) => {
            let i = entry(doc, i);
            doc.entries.extend(doc.entries.get(i).cloned());
        }
        Change::Drop(i) => {
            let i = tensor(doc, i);
            doc.tensors.drain(i..doc.tensors.len().min(i + 1));
        }
        Change::Again(i) => {
            let i = tensor(doc, i);
            doc.tensors.extend(doc.tensors.get(i).cloned());
        }
        Change::Counts(entries, tensors) => (doc.n_entries, doc.n_tensors) = (entries, tensors),
        Change::Version(version) => doc.version = version,
    }
}

fuzz_target!(|input: (u8, Vec<Change>)| {
    let (number, changes) = input;
    let mut doc = good(number);
    changes.into_iter().take(8).for_each(|c| change(&mut doc, c));
    let Ok(gguf) = Gguf::of_bytes(Path::new("model.gguf"), &doc.bytes()) else { return };
    let _ = read_hparams(&gguf, &RopeOptions::default());
    let _ = gguf.require_vocab();
    let _ = libllama::require_file(&gguf);
});
