//! The lines of a chat's file.
//!
//! The first line says what the file is, which model it was, when, and in which folder. Then come turns in their order, each with the tokens that it
//! became, so that the same model goes on from the very same state; `part` lines hold an answer in the making, which the `turn` of the
//! whole answer replaces; `keep` says how many of the turns before it still count; `set` notes a setting; `model` says that another model
//! goes on, for which the tokens before it mean nothing.
//!
//! Each line ends with a hash of itself, `"xxh3"` (XXH3 of the bytes before it, 64 bits). A line that was not written to its end is dropped;
//! one that was changed is an error. Lines without the hash, which somebody wrote, are taken as they are, but for tokens, which are made
//! anew from the texts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::chat::turn::Role;
use crate::tokenizer::Token;

/// Version of the format.
pub const VERSION: u32 = 1;

/// A line of a chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Line {
    /// The first
    Chat {
        version: u32,
        created: String,
        model: PathBuf,
        fingerprint: String,
        /// Where it was begun
        #[serde(default, skip_serializing_if = "is_default")]
        folder: PathBuf,
    },
    /// A turn that is whole
    Turn {
        role: Role,
        content: String,
        #[serde(default, skip_serializing_if = "is_default")]
        from: usize,
        #[serde(default, skip_serializing_if = "is_default")]
        tokens: Vec<Token>,
        #[serde(default, skip_serializing_if = "is_default")]
        exact: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        how: Option<How>,
    },
    /// More of the answer that comes
    Part { content: String },
    /// Only so many turns still count
    Keep { turns: usize },
    /// A setting of the chat
    Set { name: String, value: String },
    /// From here on it is a chat with this model.
    Model { model: PathBuf, fingerprint: String },
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How an answer came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// Seed of the sampler
    pub seed: u32,
    /// Why it ended
    pub stop: String,
    /// What was pruned, if anything
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<String>,
    /// Settings in force: `name=value`, by the flags' long names
    #[serde(default)]
    pub flags: Vec<String>,
}

/// A line with its hash.
pub fn seal(line: &Line) -> String {
    let json = serde_json::to_string(line).expect("plain data has a JSON form");
    let open = &json[..json.len() - 1];
    format!("{open},\"xxh3\":\"{:016x}\"}}\n", xxhash_rust::xxh3::xxh3_64(open.as_bytes()))
}

/// The line without its hash, and whether it had one; `None` if that is not its hash.
pub fn unseal(line: &[u8]) -> Option<(Vec<u8>, bool)> {
    const MARK: &[u8] = b",\"xxh3\":\"";
    let Some(at) = line.len().checked_sub(MARK.len() + 18).filter(|&at| line[at..].starts_with(MARK)) else {
        return Some((line.to_vec(), false));
    };
    let hash = str::from_utf8(&line[at + MARK.len()..line.len() - 2]).ok()?;
    let whole = line.ends_with(b"\"}") && format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&line[..at])) == hash;
    whole.then(|| ([&line[..at], b"}"].concat(), true))
}
