//! GGUF files: open, check, metadata, tensor table, memory map.
//!
//! A file is input from strangers. Everything that a later stage relies on is checked here, on the mapped bytes, before
//! gguf-rs, libllama or ggml see any of them: `header` walks the header once (counts, lengths, types, products,
//! offsets), `vocab` checks the tokenizer's metadata. What passed is handed out as [`Metadata`] and [`TensorInfo`].
//! A model may be split over several files, of which the first is given: `split` finds the others.
//! [`gguf_rs`] decodes the metadata for display (`pp-run show`).

mod header;
mod look;
mod metadata;
mod split;
mod tensor;
mod value;
mod vocab;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggml::Map;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Kind, Result};
use header::Header;
use split::Split;
pub use tensor::TensorInfo;
pub use vocab::Twins;

pub use metadata::{Metadata, OverrideValue};
pub use value::{Value, ValueType};

/// An open GGUF file whose header was checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    parts: Vec<Part>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// One of a model's files, of which most have one.
#[derive(Debug)]
struct Part {
    map: Arc<Map>,
    data_offset: usize,
}

impl Gguf {
    /// Opens, maps and checks a file, and those that go on where it ends. Errors name the file and are of kind [`Kind::Input`]
    /// (missing, unreadable, not a regular file), [`Kind::Malformed`] or [`Kind::Unsupported`].
    pub fn open(path: &Path) -> Result<Gguf> {
        let (map, header) = open_part(path)?;
        Gguf::with_parts(path, map, header)
    }

    /// Checks a file of one part that is in memory; errors name it `path`.
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Gguf> {
        let map = Map::of(bytes).map_err(|e| Error::memory(e.to_string()))?;
        let header = parse(&map).map_err(|e| e.in_file(path))?;
        Gguf::with_parts(path, map, header)
    }

    fn with_parts(path: &Path, map: Map, header: Header) -> Result<Gguf> {
        let metadata = Metadata::new(header.entries);
        let mut tensors = header.tensors;
        let mut parts = vec![Part { map: Arc::new(map), data_offset: header.data_offset }];
        let split = Split::read(&metadata).map_err(|e| e.in_file(path))?;
        let mut by_name: HashMap<String, usize> =
            tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        if let Some(split) = split {
            for (no, path) in split.others(path).map_err(|e| e.in_file(path))?.into_iter().enumerate() {
                let (map, other) = open_part(&path)?;
                split.check(no + 1, &metadata, &Metadata::new(other.entries)).map_err(|e| e.in_file(&path))?;
                let more = other.tensors.into_iter().map(|t| TensorInfo { part: no + 1, ..t });
                for tensor in more {
                    if by_name.insert(tensor.name.clone(), tensors.len()).is_some() {
                        let message = format!("tensor '{}' is in an earlier part of the model too", tensor.name);
                        return Err(Error::malformed(message).in_file(&path));
                    }
                    tensors.push(tensor);
                }
                parts.push(Part { map: Arc::new(map), data_offset: other.data_offset });
            }
            split.check_total(tensors.len()).map_err(|e| e.in_file(path))?;
        }
        Ok(Gguf { path: path.to_owned(), parts, version: header.version, metadata, tensors, by_name })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all weights.
    pub fn n_bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.n_bytes).sum()
    }

    /// Number of elements of all weights.
    pub fn n_params(&self) -> u64 {
        self.tensors().iter().map(|t| t.n_elements()).sum()
    }

    /// Size of the model's files.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.map.len() as u64).sum()
    }

    /// Number of the model's files.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata, overrides applied.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The model's files.
    pub fn maps(&self) -> Vec<Arc<Map>> {
        self.parts.iter().map(|p| p.map.clone()).collect()
    }

    /// [`Kind::Io`] if one of the files was written to since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        match self.parts.iter().any(|p| p.map.changed()) {
            true => Err(Error::io("the file was changed while it was in use: start anew").in_file(&self.path)),
            false => Ok(()),
        }
    }

    /// The whole file that a tensor is in.
    pub fn map(&self, tensor: &TensorInfo) -> &Arc<Map> {
        &self.parts[tensor.part].map
    }

    /// Where a tensor's bytes begin in its file.
    pub fn position(&self, tensor: &TensorInfo) -> usize {
        self.parts[tensor.part].data_offset + tensor.offset as usize
    }

    /// A tensor's bytes.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.position(tensor);
        &self.map(tensor)[start..start + tensor.n_bytes as usize]
    }

    /// Replaces values of the metadata (`--override-kv`).
    pub fn override_kv(&mut self, overrides: &[(String, OverrideValue)]) -> Result<()> {
        for (key, value) in overrides {
            self.metadata
                .replace(key, value)
                .map_err(|e| Error::new(Kind::Usage, format!("--override-kv {key}: {e}")))?;
        }
        Ok(())
    }

    /// XXH3 of what tells one model from another: of each file its size and its header (metadata and tensor table), the values that
    /// replace metadata, and both ends of each tensor's bytes. It takes milliseconds; who changes a file in between on purpose is not
    /// found out.
    pub fn fingerprint(&self) -> u64 {
        const END: usize = 1024;
        let mut hash = Xxh3::new();
        for part in &self.parts {
            hash.update(&(part.map.len() as u64).to_le_bytes());
            hash.update(&part.map[..part.data_offset.min(part.map.len())]);
        }
        let mut replaced = Vec::new();
        self.metadata.replaced().for_each(|entry| entry.encode(&mut replaced));
        hash.update(&replaced);
        for tensor in &self.tensors {
            let data = self.data(tensor);
            hash.update(&data[..data.len().min(END)]);
            hash.update(&data[data.len().saturating_sub(END)..]);
        }
        hash.digest()
    }

    /// Whether there is a tokenizer that libllama can load; if not, why. Returns the tokens whose text another has too.
    pub fn require_vocab(&self) -> Result<Twins> {
        vocab::require(&self.metadata, self.header()).map_err(|e| e.in_file(&self.path))
    }

    /// The file that the metadata is in.
    pub fn header(&self) -> &[u8] {
        &self.parts[0].map
    }

    /// A GGUF header with the metadata and no tensors, up to where the first tensor would be described.
    pub fn header_without_tensors(&self) -> Vec<u8> {
        self.metadata.write(self.header(), |_| true, None, None)
    }

    /// A complete GGUF file with the metadata that libllama's vocabulary loader reads, and no tensors. `twins` have no text in it, as
    /// libllama allows no text twice; it gives tokens without one a name of their own.
    pub fn vocab_header(&self, twins: &Twins, architecture: Option<&str>) -> Vec<u8> {
        let wanted =
            |key: &str| key.starts_with("tokenizer.") || (key.starts_with("general.") && key != "general.alignment");
        let twins = twins.keys().map(|&t| t as usize).collect();
        let mut out = self.metadata.write(
            self.header(),
            wanted,
            Some((vocab::TOKENS, &twins)),
            architecture.map(|a| ("general.architecture", a)),
        );
        // The data section begins aligned, even if it is empty.
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}

/// Opens, maps and checks one file.
fn open_part(path: &Path) -> Result<(Map, Header)> {
    let open = || {
        let reading = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Error::input(format!("no such file{}", look::nearest(path))),
            io::ErrorKind::PermissionDenied => Error::input("permission denied: the file cannot be read"),
            _ => Error::input(format!("cannot be read: {e}")),
        };
        // Opening a FIFO would wait for a writer: look before.
        let stat = std::fs::metadata(path).map_err(reading)?;
        if stat.is_dir() {
            return Err(Error::input("is a directory; expected a .gguf file"));
        }
        if !stat.is_file() {
            return Err(Error::input("is not a regular file; a model must be a file that can be mapped"));
        }
        if stat.len() == 0 {
            return Err(Error::malformed("the file is empty (0 bytes); expected a GGUF model: download it again"));
        }
        let file = File::open(path).map_err(reading)?;
        let map = Map::new(file).map_err(|e| {
            let kind = if e.kind() == io::ErrorKind::OutOfMemory { Kind::Memory } else { Kind::Input };
            Error::new(kind, format!("cannot be mapped into memory: {e}"))
        })?;
        let header = parse(&map)?;
        Ok((map, header))
    };
    open().map_err(|e| e.in_file(path))
}

fn parse(bytes: &[u8]) -> Result<Header> {
    look::check_magic(bytes)?;
    header::parse(bytes)
}
