//! The tokenizer's metadata: what libllama's loader and tokenizer take for granted (llama-vocab.cpp), checked.

use std::collections::{BTreeMap, HashMap};

use super::metadata::Metadata;
use super::value::{Array, Value, ValueType};
use crate::error::{Error, Result, shown};

/// Tokens whose text an earlier token has too, each with that earlier token. Real vocabularies have some.
pub type Twins = BTreeMap<i32, i32>;

/// The key of the tokens' texts.
pub const TOKENS: &str = "tokenizer.ggml.tokens";

/// The tokenizers, by the names that files have for them.
const MODELS: &[(&str, Kind)] = &[
    ("llama", Kind::Spm),
    ("gpt2", Kind::Bpe),
    ("gemma4", Kind::Bpe),
    ("bert", Kind::Wpm),
    ("t5", Kind::Ugm),
    ("rwkv", Kind::Rwkv),
    ("plamo2", Kind::Plamo2),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SentencePiece with byte fallback
    Spm,
    /// byte-level BPE
    Bpe,
    /// WordPiece
    Wpm,
    /// Unigram
    Ugm,
    /// Longest match of bytes
    Rwkv,
    /// Unigram over suffixes
    Plamo2,
}

impl Kind {
    /// The token of this name where a file names none: what libllama takes then.
    fn default_token(self, name: &str) -> Option<u32> {
        match (self, name) {
            (Kind::Spm | Kind::Plamo2, "bos") => Some(1),
            (Kind::Spm | Kind::Plamo2, "eos") => Some(2),
            (Kind::Spm | Kind::Plamo2, "unknown") => Some(0),
            (Kind::Plamo2, "padding") => Some(3),
            (Kind::Wpm, "bos") => Some(101),
            (Kind::Wpm, "unknown") => Some(100),
            (Kind::Wpm, "seperator") => Some(102),
            (Kind::Wpm, "padding") => Some(0),
            (Kind::Wpm, "mask") => Some(103),
            (Kind::Ugm, "eos") => Some(1),
            (Kind::Ugm, "unknown") => Some(2),
            (Kind::Ugm, "padding") => Some(0),
            _ => None,
        }
    }

    /// The longest text of a token, in bytes: some tokenizers of libllama's call themselves once for each byte, or keep all its suffixes.
    fn longest(self) -> usize {
        match self {
            Kind::Spm | Kind::Bpe | Kind::Wpm => usize::MAX,
            Kind::Ugm | Kind::Rwkv => 4096,
            Kind::Plamo2 => 512,
        }
    }
}

/// Keys that name a token.
const SPECIAL: &[&str] = &[
    "bos",
    "eos",
    "eot",
    "eom",
    "unknown",
    "seperator",
    "padding",
    "mask",
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
    "prefix",
    "suffix",
    "middle",
];

const FLAGS: &[&str] =
    &["add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces"];

/// LLAMA_TOKEN_TYPE_UNDEFINED to LLAMA_TOKEN_TYPE_BYTE
const TYPES: std::ops::RangeInclusive<i128> = 0..=TYPE_BYTE;
/// LLAMA_TOKEN_TYPE_BYTE
const TYPE_BYTE: i128 = 6;

/// Passes metadata from which libllama can load a tokenizer. `file` is the file that the metadata was read from.
pub fn require(meta: &Metadata, file: &[u8]) -> Result<Twins> {
    let model = meta.str("tokenizer.ggml.model")?;
    let tokens = meta.array(TOKENS, &[ValueType::Str])?;
    let (Some(model), Some(tokens)) = (model, tokens) else {
        return Err(Error::unsupported(
            "there is no tokenizer in this file (tokenizer.ggml.model, tokenizer.ggml.tokens): it may be an adapter, a \
             projector or part of a model; use a complete model file",
        ));
    };
    let Some((_, kind)) = MODELS.iter().find(|(name, _)| *name == model) else {
        let known: Vec<&str> = MODELS.iter().map(|m| m.0).collect();
        return Err(Error::unsupported(format!(
            "this file is fine, but pp-run does not know the tokenizer '{}' yet; it knows: {}",
            shown(model),
            known.join(", ")
        )));
    };
    let n = tokens.len;
    if n == 0 || i32::try_from(n).is_err() {
        return Err(Error::malformed(format!("tokenizer.ggml.tokens has {n} entries, expected 1 to {}", i32::MAX)));
    }

    if let Some((id, text)) = tokens.strings(file).enumerate().find(|(_, t)| t.len() > kind.longest()) {
        return Err(Error::malformed(format!(
            "{TOKENS}: token {id} has {} bytes, expected at most {} for the tokenizer '{model}'",
            text.len(),
            kind.longest()
        )));
    }
    let (seen, twins) = texts(tokens, file)?;
    match kind {
        Kind::Spm | Kind::Plamo2 => check_bytes(&seen)?,
        Kind::Rwkv => check_single_bytes(tokens, file)?,
        Kind::Bpe | Kind::Wpm | Kind::Ugm => {}
    }
    if *kind == Kind::Ugm && meta.get("tokenizer.ggml.precompiled_charsmap").is_some() {
        return Err(Error::unsupported(
            "the tokenizer has a precompiled_charsmap, which libllama does not check: pp-run does not hand it over",
        ));
    }
    check_arrays(meta, *kind, tokens, file)?;
    check_merges(meta, *kind, file)?;
    check_special(meta, *kind, n)?;
    for name in FLAGS {
        meta.bool(&format!("tokenizer.ggml.{name}"))?;
    }
    meta.array("tokenizer.ggml.suppress_tokens", &[ValueType::I32])?;
    meta.str("tokenizer.ggml.pre")?;
    Ok(twins)
}

/// Tokens by their texts, and those whose text an earlier one has.
fn texts<'f>(tokens: &Array, file: &'f [u8]) -> Result<(HashMap<&'f [u8], i32>, Twins)> {
    // For libllama a text ends at its first NUL, and a token whose text is empty is named [EMPTY_id].
    let mut seen: HashMap<&[u8], i32> = HashMap::with_capacity(tokens.len);
    let mut twins = Twins::new();
    let mut empty = Vec::new();
    for (id, token) in (0..).zip(tokens.strings(file)) {
        let text = token.split(|&b| b == 0).next().unwrap_or_default();
        if text.is_empty() {
            empty.push(id);
        } else if let Some(&first) = seen.get(text) {
            twins.insert(id, first);
        } else {
            seen.insert(text, id);
        }
    }
    for id in empty.iter().chain(twins.keys()) {
        if let Some(other) = seen.get(format!("[EMPTY_{id}]").as_bytes()) {
            return Err(Error::malformed(format!(
                "{TOKENS}: token {other} has the name that token {id} would have, which has no text of its own"
            )));
        }
    }
    Ok((seen, twins))
}

/// SentencePiece needs a token for each byte, for text that no other token holds.
fn check_bytes(seen: &HashMap<&[u8], i32>) -> Result<()> {
    for byte in 0..=u8::MAX {
        if !seen.contains_key(format!("<0x{byte:02X}>").as_bytes()) && !seen.contains_key(&[byte][..]) {
            return Err(Error::malformed(format!(
                "tokenizer.ggml.tokens lacks the byte token <0x{byte:02X}>: text with this byte could not be encoded"
            )));
        }
    }
    Ok(())
}

/// Longest match needs a token for each byte, too. Texts are escaped as in Python.
fn check_single_bytes(tokens: &Array, file: &[u8]) -> Result<()> {
    let mut has = [false; 256];
    for text in tokens.strings(file) {
        match *text {
            [b'\\', b'x', a, b] => {
                let digit = |c: u8| (c as char).to_digit(16);
                if let (Some(a), Some(b)) = (digit(a), digit(b)) {
                    has[(16 * a + b) as usize] = true;
                }
            }
            [b'\\', b't'] => has[usize::from(b'\t')] = true,
            [b'\\', b'n'] => has[usize::from(b'\n')] = true,
            [b'\\', b'r'] => has[usize::from(b'\r')] = true,
            [b'\\', byte] => has[usize::from(byte)] = true,
            [byte] => has[usize::from(byte)] = true,
            _ => {}
        }
    }
    match has.iter().position(|has| !has) {
        Some(byte) => Err(Error::malformed(format!(
            "tokenizer.ggml.tokens lacks a token for the byte \\x{byte:02x}: text with this byte could not be encoded"
        ))),
        None => Ok(()),
    }
}

/// Scores and types, one for each token.
fn check_arrays(meta: &Metadata, kind: Kind, tokens: &Array, file: &[u8]) -> Result<()> {
    let n = tokens.len;
    for (key, types) in [("scores", &[ValueType::F32, ValueType::I32][..]), ("token_type", &[ValueType::I32])] {
        let key = format!("tokenizer.ggml.{key}");
        if let Some(array) = meta.array(&key, types)?
            && array.len != n
        {
            return Err(Error::malformed(format!("{key} has {} entries, expected {n}, one for each token", array.len)));
        }
    }
    if let Some(scores) = meta.array("tokenizer.ggml.scores", &[ValueType::F32, ValueType::I32])?
        && let Some(id) = scores.values(file).position(|s| matches!(s, Value::F32(x) if !x.is_finite()))
    {
        return Err(Error::malformed(format!("tokenizer.ggml.scores[{id}] is NaN or infinite")));
    }
    if let Some(types) = meta.array("tokenizer.ggml.token_type", &[ValueType::I32])? {
        for (id, (ty, token)) in types.values(file).zip(tokens.strings(file)).enumerate() {
            if let Some(ty) = ty.as_i128().filter(|ty| !TYPES.contains(ty)) {
                return Err(Error::malformed(format!("tokenizer.ggml.token_type[{id}] is {ty}, expected 0 to 6")));
            }
            if ty.as_i128() == Some(TYPE_BYTE) && kind == Kind::Wpm {
                return Err(Error::malformed(format!("token {id} is marked as a byte, which WordPiece has none of")));
            }
            if ty.as_i128() == Some(TYPE_BYTE) && !is_byte_token(token) {
                return Err(Error::malformed(format!(
                    "token {id} is marked as a byte, but its text is '{}', expected <0x00> to <0xFF>",
                    shown(&String::from_utf8_lossy(token))
                )));
            }
        }
    }
    Ok(())
}

/// The pairs that byte-level BPE merges; other tokenizers need none.
fn check_merges(meta: &Metadata, kind: Kind, file: &[u8]) -> Result<()> {
    let merges = meta.array("tokenizer.ggml.merges", &[ValueType::Str])?;
    // One that libllama knows splits texts by itself.
    let has_none = merges.is_none() && meta.str("tokenizer.ggml.pre")? == Some("kimi-k2");
    if kind != Kind::Bpe || has_none {
        return Ok(());
    }
    let Some(merges) = merges else {
        return Err(Error::malformed("tokenizer.ggml.merges is missing, which the tokenizer 'gpt2' needs"));
    };
    match merges.strings(file).enumerate().find(|(_, m)| !m.iter().skip(1).any(|&b| b == b' ')) {
        Some((i, merge)) => Err(Error::malformed(format!(
            "tokenizer.ggml.merges[{i}] is '{}', expected two parts with a space between",
            shown(&String::from_utf8_lossy(merge))
        ))),
        None => Ok(()),
    }
}

/// Checks that each key that names a token names one of the `n` tokens.
fn check_special(meta: &Metadata, kind: Kind, n: usize) -> Result<()> {
    let is_byte_level = meta.str("tokenizer.ggml.model")? == Some("gpt2");
    let default = |name: &str| match name {
        "bos" | "eos" if is_byte_level => Some(11),
        _ => kind.default_token(name),
    };
    for name in SPECIAL {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let named = meta.u32(&key)?;
        let Some(id) = named.or_else(|| default(name)) else { continue };
        if id as usize >= n {
            let how = if named.is_some() { "is" } else { "is missing, which means" };
            return Err(Error::malformed(format!(
                "{key} {how} {id}, expected a token of the vocabulary (0 to {})",
                n - 1
            )));
        }
    }
    Ok(())
}

fn is_byte_token(token: &[u8]) -> bool {
    matches!(token, [b'<', b'0', b'x', a, b, b'>'] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}
