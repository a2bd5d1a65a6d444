//! Prompt caches: the tokens of a text and what a model remembers of them in a file, so that no prompt is processed twice.
//!
//! Layout, little-endian:
//!
//! ```text
//!   0  magic "PPRUNKVC"
//!   8  version, u32
//!  12  number of tokens, u64
//!  20  number of all other bytes, u64
//!  28  fingerprint of the model, u64 (Gguf::fingerprint)
//!  36  whose engine: 0 ours, 1 libllama; type of keys, type of values (ggml's ids), flash attention (0 or 1), a context for which RoPE
//!      has other frequencies (0 or 1), u32 each
//!  56  ours: number of layers with cells, bytes of a token's keys and of its values over all of them, width of the rotation of keys, of
//!      values (0: none), u32 each
//!      RoPE in force, or zeros for none: n_dims, neox (0 or 1), n_ctx_orig, u32 each; freq_base, freq_scale, ext_factor, attn_factor,
//!      beta_fast, beta_slow, f32 each
//!      pruning, 88 bytes: prune::Pruning::identity, or zeros for none
//!      libllama's: XXH3 of the versions of who wrote it, u64
//!      tokens, i32 each
//!      ours: cells, as KvCache::save writes them; libllama's: the state of a sequence, as libllama makes it
//!      XXH3 of all that, u64
//! ```
//!
//! Whose kernels computed the cells is not in it: they are the same but for rounding. A file that does not fit is ignored with the reason,
//! and replaced; one that does not begin as ours is never touched. Nothing is taken from a file before all of it was checked: its length
//! against the header before anything is allocated, then the checksum, then tokens and values, as a checksum keeps out accidents only. Of a
//! state only libllama knows what is in it: it is handed over if the same versions wrote it, and libllama has its own checks.
//! A symbolic link is followed to read, and replaced itself by what is written.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use ggml::{Map, Rope};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::{Error, Kind, Result};
use crate::graph::{CacheType, KvCache};
use crate::model::Model;
use crate::prune::{IDENTITY_BYTES, Pruning};
use crate::system::places::replace_file;
use crate::tokenizer::Token;

const MAGIC: &[u8; 8] = b"PPRUNKVC";
/// Version 1 told settings of pruning apart by a hash of a text that is not made any more.
const VERSION: u32 = 6;
/// Bytes of the header before [`Origin`].
const COUNTED: usize = 28;
/// Bytes of the checksum.
const SUM: usize = 8;

/// All that the memory of a text depends on, beside its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// The model: [`crate::gguf::Gguf::fingerprint`]
    pub fingerprint: u64,
    /// Type of keys
    pub type_k: CacheType,
    /// Type of values
    pub type_v: CacheType,
    /// Values lie as flash attention reads them
    pub flash_attn: bool,
    /// The context is one for which RoPE has other frequencies
    pub is_long: bool,
    /// Whose memory it is
    pub memory: Memory,
}

/// What else the memory of a text depends on.
#[derive(Debug, Clone, PartialEq)]
pub enum Memory {
    /// Cells of our own cache
    Cells {
        /// Bytes of a token's keys and of its values in each layer that has cells
        layers: Vec<[usize; 2]>,
        /// Width of the rotation of keys; 0 for none
        rot_k: usize,
        /// The same for values
        rot_v: usize,
        /// RoPE in force, if any
        rope: Option<Rope>,
        /// [`Pruning::identity`]; zeros for no pruning
        pruning: [u8; IDENTITY_BYTES],
    },
    /// A state of libllama's
    State {
        /// Versions of all who have a say in what is in it
        versions: String,
    },
}

/// What a file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is none
    Nothing,
    /// It is ours, but of no use here: why
    Unusable(String),
    /// The session has its tokens
    Restored,
}

/// The contents of a file.
#[derive(Debug)]
pub struct Saved<'a> {
    /// The tokens, all of the vocabulary
    pub tokens: Vec<Token>,
    /// Their cells, as many as there are tokens and all finite, or their state
    pub memory: &'a [u8],
}

impl Origin {
    /// That of the cells of a session.
    pub fn of_cells(model: &Model, cache: &KvCache, pruning: Option<&Pruning>) -> Origin {
        let (hparams, params) = (model.hparams(), cache.params());
        let [rot_k, rot_v] = cache.rotations();
        Origin {
            fingerprint: model.gguf().fingerprint(),
            type_k: params.type_k,
            type_v: params.type_v,
            flash_attn: params.flash_attn,
            is_long: model.is_long(params.n_cells),
            memory: Memory::Cells {
                layers: cache.cell_bytes(),
                rot_k,
                rot_v,
                rope: hparams.rope,
                pruning: pruning.map_or([0; IDENTITY_BYTES], Pruning::identity),
            },
        }
    }

    /// The header from the fingerprint on, in parts, each with what is wrong with a file whose part is another.
    fn parts(&self) -> Vec<(Vec<u8>, &'static str)> {
        const CACHE: &str = "is of a KV cache of another type or layout (-ctk, -ctv, -fa)";
        const ROPE: &str = "was made with other RoPE settings, or for a context of another length";
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let engine = match self.memory {
            Memory::Cells { .. } => 0,
            Memory::State { .. } => 1,
        };
        let types = [self.type_k, self.type_v].map(|ty| ty.tensor_type().id());
        let mut parts = vec![
            (self.fingerprint.to_le_bytes().to_vec(), "is of another model"),
            (words(&[engine]), "was made by another engine (--engine)"),
            (words(&[types[0], types[1], self.flash_attn.into()]), CACHE),
            (words(&[self.is_long.into()]), ROPE),
        ];
        match &self.memory {
            Memory::Cells { layers, rot_k, rot_v, rope, pruning } => {
                // The fingerprint tells models apart; this is for a message that says more.
                let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let sum = |part: usize| layers.iter().map(|l| l[part]).sum();
                let rope = rope.map_or([0; 9], |r| {
                    let [a, b, c, d, e, f] =
                        [r.freq_base, r.freq_scale, r.ext_factor, r.attn_factor, r.beta_fast, r.beta_slow]
                            .map(f32::to_bits);
                    [r.n_dims, r.neox.into(), r.n_ctx_orig, a, b, c, d, e, f]
                });
                parts.extend([
                    (words(&[layers.len(), sum(0), sum(1), *rot_k, *rot_v].map(number)), CACHE),
                    (words(&rope), ROPE),
                    (pruning.to_vec(), "was made with other settings of --prune"),
                ]);
            }
            Memory::State { versions } => {
                let sum = xxh3_64(versions.as_bytes()).to_le_bytes();
                parts.push((sum.to_vec(), "was written by another version of pp-run or libllama"));
            }
        }
        parts
    }

    /// The header from the fingerprint on.
    fn header(&self) -> Vec<u8> {
        self.parts().into_iter().flat_map(|(part, _)| part).collect()
    }

    /// Passes the memory of `n` tokens.
    fn require(&self, n: usize, memory: &[u8]) -> Result<(), String> {
        let Memory::Cells { layers, .. } = &self.memory else { return Ok(()) };
        let types = [self.type_k, self.type_v].map(CacheType::tensor_type);
        if memory.len() != n * layers.iter().flatten().sum::<usize>() {
            return Err(format!("is damaged: it has {} bytes for {n} tokens", memory.len()));
        }
        let mut rest = memory;
        let mut is_finite = |&[key, value]: &[usize; 2]| {
            let (layer, after) = rest.split_at(n * (key + value));
            rest = after;
            types[0].is_finite(&layer[..n * key]) && types[1].is_finite(&layer[n * key..])
        };
        if !layers.iter().all(&mut is_finite) {
            return Err("is damaged: it has values that are NaN or infinite".into());
        }
        Ok(())
    }
}

/// Bytes of a file of so many tokens and other bytes.
fn length(n_tokens: u64, n_others: u64) -> Option<u64> {
    n_tokens.checked_mul(4)?.checked_add(n_others)
}

/// Looks whether there is a file of ours, to be read or replaced.
fn look(path: &Path) -> Result<Option<File>> {
    let reading = |e: io::Error| Error::input(format!("cannot be read: {e}")).in_file(path);
    // Opening a FIFO would wait for a writer: look before.
    let stat = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        stat => stat.map_err(reading)?,
    };
    if !stat.is_file() {
        return Err(Error::new(Kind::CannotCreate, "is no regular file: a prompt cache cannot be there").in_file(path));
    }
    let file = File::open(path).map_err(reading)?;
    let mut start = Vec::new();
    (&file).take(MAGIC.len() as u64).read_to_end(&mut start).map_err(reading)?;
    if !MAGIC.starts_with(&start) {
        return Err(Error::malformed("is no prompt cache of pp-run: it is left as it is").in_file(path));
    }
    Ok(Some(file))
}

/// A file of ours, to be checked by [`parse`]; `None` if there is none. [`Kind::Malformed`] if it is something else,
/// [`Kind::CannotCreate`] if it is no file, [`Kind::Input`] if it cannot be read.
pub fn open(path: &Path) -> Result<Option<Map>> {
    let Some(file) = look(path)? else { return Ok(None) };
    let map = match file.metadata() {
        // It cannot be mapped.
        Ok(stat) if stat.len() == 0 => Map::of(&[]),
        _ => Map::new(file),
    };
    map.map(Some).map_err(|e| Error::input(format!("cannot be mapped into memory: {e}")).in_file(path))
}

/// Tokens that a file of ours says it has, if it is as long as it says; 0 otherwise.
pub fn n_tokens(path: &Path) -> u64 {
    let read = || {
        let mut file = look(path).ok()??;
        let mut rest = [0; COUNTED - MAGIC.len()];
        file.read_exact(&mut rest).ok()?;
        let [n, others] = [4, 12].map(|at| u64_at(&rest, at));
        (length(n, others)? == file.metadata().ok()?.len()).then_some(n)
    };
    read().unwrap_or(0)
}

/// The tokens of a file of ours whose memory is of `origin`, no more than the first `most`; nothing behind them is read or checked.
pub fn tokens(path: &Path, origin: &Origin, most: usize) -> Option<Vec<Token>> {
    let mut file = BufReader::new(look(path).ok()??);
    let wanted = origin.header();
    // `look` has read the magic.
    let mut header = vec![0; COUNTED - MAGIC.len() + wanted.len()];
    file.read_exact(&mut header).ok()?;
    let (counted, of) = header.split_at(COUNTED - MAGIC.len());
    if !counted.starts_with(&VERSION.to_le_bytes()) || of != wanted {
        return None;
    }
    let n = u64_at(counted, 4).min(most as u64);
    let mut bytes = Vec::new();
    file.take(4 * n).read_to_end(&mut bytes).ok()?;
    Some(bytes.chunks_exact(4).map(|t| Token::from_le_bytes(t.try_into().expect("four bytes"))).collect())
}

/// A hash of an origin, and of `more`.
pub fn identity(origin: &Origin, more: &str) -> u64 {
    xxh3_64(&[&origin.header()[..], more.as_bytes()].concat())
}

/// Bytes of a file of so many tokens, and of what a model remembers of them.
pub fn file_bytes(origin: &Origin, n_tokens: usize, n_memory: usize) -> u64 {
    (COUNTED + origin.header().len() + 4 * n_tokens + n_memory + SUM) as u64
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads the bytes of a file of ours for a session whose memory is of `origin`, in a context of `n_ctx`. An error is the reason why it
/// is of no use.
pub fn parse<'a>(bytes: &'a [u8], origin: &Origin, n_ctx: usize, n_vocab: usize) -> Result<Saved<'a>, String> {
    if bytes.len() < COUNTED + SUM || !bytes.starts_with(MAGIC) {
        return Err("is cut short".into());
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(format!("is of version {version}, expected {VERSION}"));
    }
    let (body, sum) = bytes.split_at(bytes.len() - SUM);
    let mut rest = &body[COUNTED..];
    for (part, other) in origin.parts() {
        rest = rest.strip_prefix(&part[..]).ok_or(other)?;
    }
    let n_tokens = u64_at(bytes, 12);
    if n_tokens > n_ctx as u64 {
        return Err(format!("holds {n_tokens} tokens, and the context {n_ctx} (-c)"));
    }
    let n = n_tokens as usize;
    let is_whole = length(n_tokens, u64_at(bytes, 20)) == Some(bytes.len() as u64);
    let Some((tokens, memory)) = rest.split_at_checked(4 * n).filter(|_| is_whole) else {
        return Err(format!("is damaged: it has {} bytes for {n} tokens", bytes.len()));
    };
    if xxh3_64(body).to_le_bytes() != *sum {
        return Err("is damaged: its checksum does not match".into());
    }
    let tokens: Vec<Token> =
        tokens.chunks_exact(4).map(|t| Token::from_le_bytes(t.try_into().expect("four bytes"))).collect();
    if tokens.iter().any(|&t| !usize::try_from(t).is_ok_and(|t| t < n_vocab)) {
        return Err("is damaged: it has tokens that the model does not know".into());
    }
    origin.require(n, memory)?;
    Ok(Saved { tokens, memory })
}

/// The memory of as many tokens as the header says: its bytes, and what writes them.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    /// How many there are
    pub n: usize,
    /// Writes them
    pub write: &'a dyn Fn(&mut dyn Write) -> io::Result<()>,
}

/// Writes the bytes of a file.
pub fn encode(out: &mut dyn Write, origin: &Origin, tokens: &[Token], memory: Bytes) -> io::Result<()> {
    let header = origin.header();
    let n_others = COUNTED + header.len() + memory.n + SUM;
    let mut out = Summed { out, sum: Xxh3::new() };
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&(tokens.len() as u64).to_le_bytes())?;
    out.write_all(&(n_others as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for token in tokens {
        out.write_all(&token.to_le_bytes())?;
    }
    (memory.write)(&mut out)?;
    let sum = out.sum.digest();
    out.out.write_all(&sum.to_le_bytes())
}

/// Writes a file, under a temporary name first, readable for its owner only, as a prompt may be private. [`Kind::CannotCreate`] or
/// [`Kind::Io`] leave what was there; so does [`Kind::Malformed`]: it is something else than a prompt cache.
pub fn write(path: &Path, origin: &Origin, tokens: &[Token], memory: Bytes) -> Result<()> {
    // Another program may have put a file there since this one was read.
    look(path)?;
    replace_file(path, 0o600, |file| {
        let mut out = BufWriter::new(file);
        encode(&mut out, origin, tokens, memory)?;
        out.flush()
    })
}

/// A writer that sums what it writes.
struct Summed<'a> {
    out: &'a mut dyn Write,
    sum: Xxh3,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
