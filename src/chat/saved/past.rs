//! A chat that is read: what its lines say.

use std::path::PathBuf;

use super::line::{Line, VERSION, unseal};
use crate::chat::turn::{CUT, Role, Turn};
use crate::error::{Error, Result};

/// Longest chat.
pub const MAX_BYTES: u64 = 64 << 20;

/// Most settings: many more than there are.
const MAX_SETTINGS: usize = 100;

/// A chat that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// Its turns; an answer that was never finished is the last
    pub turns: Vec<Turn>,
    /// Settings by name, in the order of their last change
    pub settings: Vec<(String, String)>,
    /// The model's file
    pub model: PathBuf,
    /// The model's fingerprint
    pub fingerprint: String,
    /// The last answer was never finished.
    pub unfinished: bool,
    /// Its last line was not written to its end.
    pub torn: bool,
    /// The last question, if it had no answer at all: it is not among the turns.
    pub unanswered: Option<Turn>,
    /// Somebody changed a turn by hand: its tokens may not be those of its text.
    pub by_hand: bool,
    /// Bytes up to the end of the last whole line
    pub(super) good: u64,
}

impl Past {
    /// Reads the lines of a file. If one is damaged, the error is of kind [`crate::error::Kind::Malformed`] and names the line.
    pub fn parse(bytes: &[u8]) -> Result<Past> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::malformed(format!("is longer than {MAX_BYTES} bytes: no chat")));
        }
        let good = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let mut past: Option<Past> = None;
        let mut parts = String::new();
        for (i, line) in bytes[..good].split_inclusive(|&b| b == b'\n').enumerate() {
            let bad = |what: &str| Error::malformed(format!("line {}: {what}", i + 1));
            let (line, sealed) =
                unseal(&line[..line.len() - 1]).ok_or_else(|| bad("was changed after it was written"))?;
            let line: Line = serde_json::from_slice(&line).map_err(|e| bad(&format!("is no line of a chat: {e}")))?;
            let Some(past) = &mut past else {
                let Line::Chat { version, created: _, model, fingerprint, folder: _ } = line else {
                    return Err(bad("does not say what this file is"));
                };
                if version != VERSION {
                    let what = format!("this chat has format {version}, and this pp-run reads {VERSION}");
                    return Err(Error::unsupported(what));
                }
                let (turns, settings, unfinished, unanswered) = Default::default();
                let (good, torn, by_hand) = (good as u64, good < bytes.len(), false);
                past = Some(Past { turns, settings, model, fingerprint, unfinished, torn, unanswered, by_hand, good });
                continue;
            };
            match line {
                Line::Chat { .. } => return Err(bad("begins another chat")),
                Line::Part { content } => parts.push_str(&content),
                Line::Turn { role, content, from, tokens, exact, how: _ } => {
                    let after = past.turns.last().map(|t| t.message.role);
                    let fits = match role {
                        Role::System => after.is_none(),
                        Role::User => after != Some(Role::User),
                        Role::Assistant => after == Some(Role::User),
                    };
                    if !fits {
                        return Err(bad("has a turn that does not come after the one before"));
                    }
                    past.by_hand |= !sealed && !tokens.is_empty();
                    let from = if role == Role::User { from } else { 0 };
                    past.turns.push(Turn { from, tokens, exact, ..Turn::new(role, &content) });
                    parts.clear();
                }
                Line::Keep { turns } => {
                    past.turns.truncate(turns);
                    parts.clear();
                }
                Line::Set { name, value } => {
                    // Of these there are several, until they are emptied.
                    past.settings.retain(|s| s.0 != name || (name == "stop" && !value.is_empty()));
                    if past.settings.len() == MAX_SETTINGS {
                        return Err(bad("has more settings than there are"));
                    }
                    past.settings.push((name, value));
                }
                Line::Model { model, fingerprint } => {
                    if fingerprint != past.fingerprint {
                        past.turns.iter_mut().for_each(Turn::forget_tokens);
                    }
                    (past.model, past.fingerprint) = (model, fingerprint);
                }
            }
        }
        let mut past = past.ok_or_else(|| Error::malformed("is empty: no chat"))?;
        if past.turns.last().is_some_and(|t| t.message.role == Role::User) {
            match parts.is_empty() {
                // It is asked again, if at all.
                true => past.unanswered = past.turns.pop(),
                false => {
                    past.turns.push(Turn::new(Role::Assistant, &(parts + CUT)));
                    past.unfinished = true;
                }
            }
        }
        Ok(past)
    }

    /// What the chat is about: the first words of the user's.
    pub fn title(&self) -> &str {
        let first = self.turns.iter().find(|t| t.message.role == Role::User);
        first.and_then(|t| t.message.content.lines().find(|l| !l.trim().is_empty())).unwrap_or("(empty)").trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_chat_is_refused() {
        let head = "{\"type\":\"chat\",\"version\":1,\"created\":\"\",\"model\":\"m\",\"fingerprint\":\"f\"}\n";
        for (text, want) in [
            (String::new(), "is empty"),
            ("hello\n".into(), "line 1"),
            ("{\"type\":\"turn\",\"role\":\"user\",\"content\":\"x\"}\n".into(), "what this file is"),
            (format!("{head}{head}"), "begins another"),
            (format!("{head}{{\"type\":\"turn\",\"role\":\"assistant\",\"content\":\"x\"}}\n"), "does not come after"),
            (format!("{head}{{\"type\":\"turn\",\"role\":\"user\",\"content\":\"x\",\"tokens\":[1e9]}}\n"), "line 2"),
            (format!("{head}{{\"type\":\"keep\",\"turns\":-1}}\n"), "line 2"),
            (format!("{head}{}\n", "[".repeat(100_000)), "line 2"),
            (head.replace(":1,", ":2,"), "format 2"),
        ] {
            let e = Past::parse(text.as_bytes()).unwrap_err();
            assert!(e.to_string().contains(want), "{text}: {e}");
        }
        let own = format!(
            "{head}{{\"type\":\"turn\",\"role\":\"user\",\"content\":\"x\"}}\n{{\"type\":\"turn\",\"role\":\"assistant\",\"content\":\"y\"}}\n"
        );
        assert_eq!(Past::parse(own.as_bytes()).unwrap().turns.len(), 2, "a chat that somebody wrote");
    }
}
