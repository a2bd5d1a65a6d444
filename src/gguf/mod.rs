//! GGUF files: open, check, metadata, tensor table, memory map.
//!
//! A file is input from strangers. Everything that a later stage relies on is checked here, on the mapped bytes, before
//! gguf-rs, libllama or ggml see any of them: `header` walks the header once (counts, lengths, types, products,
//! offsets), `vocab` checks the tokenizer's metadata. What passed is handed out as [`Metadata`] and [`TensorInfo`].
//! [`gguf_rs`] decodes the metadata for display (`pp-run show`).

mod header;
mod look;
mod metadata;
mod vocab;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggml::{Map, Type};

use crate::cli::options::OverrideValue;
use crate::error::{Error, Kind, Result};

pub use metadata::{Array, Metadata, Value, ValueType};

/// A tensor as the file describes it; type, shape, size and position have been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Name, at most 63 bytes.
    pub name: String,
    /// Element type.
    pub ty: Type,
    /// Number of dimensions in the file, 1 to 4.
    pub n_dims: u32,
    /// Shape; unused dimensions are 1.
    pub ne: [u64; 4],
    /// Bytes from the start of the data section.
    pub offset: u64,
    /// Size in bytes.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        self.ne.iter().product()
    }
}

/// An open GGUF file whose header was checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<Map>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    data_offset: usize,
}

impl Gguf {
    /// Opens, maps and checks a file. Errors name the file and are of kind [`Kind::Input`] (missing, unreadable, not a
    /// regular file), [`Kind::Malformed`] or [`Kind::Unsupported`].
    pub fn open(path: &Path) -> Result<Gguf> {
        Gguf::open_inner(path).map_err(|e| e.in_file(path))
    }

    fn open_inner(path: &Path) -> Result<Gguf> {
        let reading = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Error::input("no such file"),
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
        let map = Map::new(&file).map_err(|e| Error::input(format!("cannot be mapped into memory: {e}")))?;
        look::check_magic(&map)?;
        let header = header::parse(&map)?;
        let by_name = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Gguf {
            path: path.to_owned(),
            map: Arc::new(map),
            version: header.version,
            metadata: Metadata::new(header.entries),
            tensors: header.tensors,
            by_name,
            data_offset: header.data_offset,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
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

    /// The whole file.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Where a tensor's bytes begin in the file.
    pub fn position(&self, tensor: &TensorInfo) -> usize {
        self.data_offset + tensor.offset as usize
    }

    /// A tensor's bytes.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.position(tensor);
        &self.map[start..start + tensor.n_bytes as usize]
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

    /// Whether there is a tokenizer that libllama can load; if not, why.
    pub fn require_vocab(&self) -> Result<()> {
        vocab::require(&self.metadata, &self.map).map_err(|e| e.in_file(&self.path))
    }

    /// A GGUF header with all metadata and no tensors, up to where the first tensor would be described.
    pub fn header_without_tensors(&self) -> Vec<u8> {
        self.metadata.write(&self.map, |_| true)
    }

    /// A complete GGUF file with the metadata that libllama's vocabulary loader reads, and no tensors.
    pub fn vocab_header(&self) -> Vec<u8> {
        let mut out = self.metadata.write(&self.map, |key| {
            key.starts_with("tokenizer.") || (key.starts_with("general.") && key != "general.alignment")
        });
        // The data section begins aligned, even if it is empty.
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}
