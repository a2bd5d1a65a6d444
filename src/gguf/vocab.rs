//! The tokenizer's metadata: what libllama's loader and tokenizer take for granted (llama-vocab.cpp), checked.

use std::collections::HashSet;

use super::metadata::{Metadata, ValueType};
use crate::error::{Error, Result};

/// Tokenizers of the architectures that pp-run runs.
const MODELS: &[(&str, Kind)] = &[("llama", Kind::Spm), ("gpt2", Kind::Bpe)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SentencePiece with byte fallback
    Spm,
    /// byte-level BPE
    Bpe,
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

/// LLAMA_TOKEN_TYPE_BYTE
const TYPE_BYTE: i128 = 6;

/// Passes metadata from which libllama can load a tokenizer. `file` is the file that the metadata was read from.
pub fn require(meta: &Metadata, file: &[u8]) -> Result<()> {
    let model = meta.str("tokenizer.ggml.model")?;
    let tokens = meta.array("tokenizer.ggml.tokens", &[ValueType::Str])?;
    let (Some(model), Some(tokens)) = (model, tokens) else {
        return Err(Error::malformed(
            "there is no tokenizer in this file (tokenizer.ggml.model, tokenizer.ggml.tokens): it may be an adapter, a \
             projector or part of a model; use a complete model file",
        ));
    };
    let Some((_, kind)) = MODELS.iter().find(|(name, _)| *name == model) else {
        let known: Vec<&str> = MODELS.iter().map(|m| m.0).collect();
        return Err(Error::unsupported(format!(
            "this file is fine, but pp-run does not know the tokenizer '{model}' yet; it knows: {}",
            known.join(", ")
        )));
    };
    let n = tokens.len;
    if n == 0 || i32::try_from(n).is_err() {
        return Err(Error::malformed(format!("tokenizer.ggml.tokens has {n} entries, expected 1 to {}", i32::MAX)));
    }

    let mut seen = HashSet::with_capacity(n);
    for (id, token) in tokens.strings(file).enumerate() {
        // libllama gives empty tokens a name of their own.
        if !token.is_empty() && !seen.insert(token) {
            return Err(Error::malformed(format!(
                "tokenizer.ggml.tokens has '{}' twice (again at {id}): every token must be unique",
                String::from_utf8_lossy(token)
            )));
        }
    }
    if *kind == Kind::Spm {
        for byte in 0..=u8::MAX {
            if !seen.contains(format!("<0x{byte:02X}>").as_bytes()) && !seen.contains(&[byte][..]) {
                return Err(Error::malformed(format!(
                    "tokenizer.ggml.tokens lacks the byte token <0x{byte:02X}>: text with this byte could not be encoded"
                )));
            }
        }
    }

    for (key, types) in [("scores", &[ValueType::F32, ValueType::I32][..]), ("token_type", &[ValueType::I32])] {
        let key = format!("tokenizer.ggml.{key}");
        if let Some(array) = meta.array(&key, types)?
            && array.len != n
        {
            return Err(Error::malformed(format!("{key} has {} entries, expected {n}, one for each token", array.len)));
        }
    }
    if let Some(types) = meta.array("tokenizer.ggml.token_type", &[ValueType::I32])? {
        for (id, (ty, token)) in types.values(file).zip(tokens.strings(file)).enumerate() {
            if ty.as_i128() == Some(TYPE_BYTE) && !is_byte_token(token) {
                return Err(Error::malformed(format!(
                    "token {id} is marked as a byte, but its text is '{}', expected <0x00> to <0xFF>",
                    String::from_utf8_lossy(token)
                )));
            }
        }
    }
    let merges = meta.array("tokenizer.ggml.merges", &[ValueType::Str])?;
    if *kind == Kind::Bpe {
        let Some(merges) = merges else {
            return Err(Error::malformed("tokenizer.ggml.merges is missing, which the tokenizer 'gpt2' needs"));
        };
        if let Some((i, merge)) = merges.strings(file).enumerate().find(|(_, m)| !m.iter().skip(1).any(|&b| b == b' '))
        {
            return Err(Error::malformed(format!(
                "tokenizer.ggml.merges[{i}] is '{}', expected two parts with a space between",
                String::from_utf8_lossy(merge)
            )));
        }
    }

    for name in SPECIAL {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if let Some(id) = meta.u32(&key)?
            && id as usize >= n
        {
            return Err(Error::malformed(format!(
                "{key} is {id}, expected a token of the vocabulary (0 to {})",
                n - 1
            )));
        }
    }
    for name in FLAGS {
        meta.bool(&format!("tokenizer.ggml.{name}"))?;
    }
    meta.array("tokenizer.ggml.suppress_tokens", &[ValueType::I32])?;
    meta.str("tokenizer.ggml.pre")?;
    meta.str("tokenizer.chat_template")?;
    Ok(())
}

fn is_byte_token(token: &[u8]) -> bool {
    matches!(token, [b'<', b'0', b'x', a, b, b'>'] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}
