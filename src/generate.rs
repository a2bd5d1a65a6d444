//! Tokens out: the loop of sampling and decoding, the rules that end it, and the text that can be shown so far.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::{Kind, Result};
use crate::sampler::Sampler;
use crate::engine::Session;
use crate::tokenizer::{Token, Tokenizer};

/// What generation needs of a model.
pub trait Decode {
    /// Appends one token and computes its logits.
    fn decode(&mut self, token: Token) -> Result<()>;
    /// Logits `[n_vocab]` after the last token.
    fn logits(&self) -> &[f32];
    /// Tokens so far.
    fn n_past(&self) -> usize;
    /// Tokens that there is room for.
    fn n_ctx(&self) -> usize;
}

impl Decode for Session<'_> {
    fn decode(&mut self, token: Token) -> Result<()> {
        Session::decode(self, token)
    }

    fn logits(&self) -> &[f32] {
        Session::logits(self)
    }

    fn n_past(&self) -> usize {
        Session::n_past(self)
    }

    fn n_ctx(&self) -> usize {
        Session::n_ctx(self)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    EndOfText,
    /// A text of `--stop` came.
    StopString(String),
    /// `-n` tokens were generated.
    Limit,
    /// The context is full.
    ContextFull,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

impl StopReason {
    /// Name in JSON and in the statistics.
    pub fn name(&self) -> &'static str {
        match self {
            StopReason::EndOfText => "end_of_text",
            StopReason::StopString(_) => "stop_string",
            StopReason::Limit => "limit",
            StopReason::ContextFull => "context_full",
            StopReason::Interrupted => "interrupted",
        }
    }
}

/// How many tokens an answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predict {
    /// `-n N`
    AtMost(u64),
    /// `-n -1`: until the model ends (or the context is full)
    Unlimited,
    /// `-n -2`: until the context is full
    FillContext,
}

/// When an answer ends.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Number of tokens.
    pub predict: Predict,
    /// Texts that end it and are not part of it.
    pub stop: Vec<String>,
    /// Special tokens are shown.
    pub special: bool,
}

/// An answer in the making: an iterator over pieces of text.
#[derive(Debug)]
pub struct Generate<'a, D> {
    model: &'a mut D,
    tokenizer: &'a Tokenizer,
    sampler: &'a mut Sampler,
    limits: Limits,
    interrupt: Arc<AtomicBool>,
    /// Drawn, but not yet in the model.
    pending: Option<Token>,
    tokens: Vec<Token>,
    first_token: Option<Instant>,
    utf8: Utf8Stream,
    /// Text that may turn out to be the beginning of a stop string.
    held: String,
    ready: VecDeque<String>,
    stop: Option<StopReason>,
}

impl<'a, D: Decode> Generate<'a, D> {
    /// An answer to what the model has processed.
    pub fn new(
        model: &'a mut D,
        tokenizer: &'a Tokenizer,
        sampler: &'a mut Sampler,
        limits: Limits,
        interrupt: Arc<AtomicBool>,
    ) -> Self {
        let stop = (limits.predict == Predict::AtMost(0)).then_some(StopReason::Limit);
        Generate {
            model,
            tokenizer,
            sampler,
            limits,
            interrupt,
            pending: None,
            tokens: Vec::new(),
            first_token: None,
            utf8: Utf8Stream::default(),
            held: String::new(),
            ready: VecDeque::new(),
            stop,
        }
    }

    /// When the first token was drawn.
    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Ends the answer and gives back the tokens drawn and why it ended.
    pub fn finish(self) -> (Vec<Token>, StopReason) {
        (self.tokens, self.stop.unwrap_or(StopReason::Interrupted))
    }

    /// One token: into the model with the last one, out with the next.
    fn step(&mut self) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) {
            self.end(StopReason::Interrupted);
            return Ok(());
        }
        if let Some(token) = self.pending.take() {
            if self.model.n_past() >= self.model.n_ctx() {
                self.end(StopReason::ContextFull);
                return Ok(());
            }
            match self.model.decode(token) {
                Err(e) if e.kind() == Kind::Interrupted => {
                    self.end(StopReason::Interrupted);
                    return Ok(());
                }
                result => result?,
            }
        }
        let token = self.sampler.sample(self.model.logits())?;
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(token);
        let text = self.utf8.push(&self.tokenizer.piece(token, self.limits.special));
        self.show(&text);
        if self.stop.is_some() {
            return Ok(());
        }
        if self.tokenizer.is_eog(token) && self.limits.predict != Predict::FillContext {
            self.end(StopReason::EndOfText);
        } else if self.limits.predict == Predict::AtMost(self.tokens.len() as u64) {
            self.end(StopReason::Limit);
        }
        self.pending = Some(token);
        Ok(())
    }

    /// Hands out text up to where a stop string may begin.
    fn show(&mut self, text: &str) {
        self.held.push_str(text);
        let found = self.limits.stop.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s))).min_by_key(|f| f.0);
        if let Some((at, stop)) = found {
            self.stop = Some(StopReason::StopString(stop.clone()));
            self.held.truncate(at);
        }
        let hold = if self.stop.is_some() {
            0
        } else {
            self.limits.stop.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0)
        };
        let rest = self.held.split_off(self.held.len() - hold);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            self.ready.push_back(text);
        }
    }

    /// Ends the answer: what was held back is part of it.
    fn end(&mut self, reason: StopReason) {
        let text = std::mem::take(&mut self.held) + &self.utf8.finish();
        if !text.is_empty() {
            self.ready.push_back(text);
        }
        self.stop = Some(reason);
    }
}

impl<D: Decode> Iterator for Generate<'_, D> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        loop {
            if let Some(text) = self.ready.pop_front() {
                return Some(Ok(text));
            }
            if self.stop.is_some() {
                return None;
            }
            if let Err(e) = self.step() {
                self.stop = Some(StopReason::Interrupted);
                return Some(Err(e));
            }
        }
    }
}

/// Length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n])
        .unwrap_or(0)
}

/// Text out of bytes that come in pieces: characters are held back until they are whole, and bytes that are none become
/// U+FFFD.
#[derive(Debug, Default)]
pub struct Utf8Stream {
    bytes: Vec<u8>,
}

impl Utf8Stream {
    /// What is whole characters after these bytes too; what never can be is U+FFFD.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.bytes.extend_from_slice(piece);
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = used + invalid.len() == self.bytes.len();
            if at_end && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.bytes.drain(..used);
        text
    }

    /// What is left when no more comes.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_held_until_they_are_whole() {
        let mut s = Utf8Stream::default();
        let bytes = "a\u{1f44b}b".as_bytes();
        let shown: Vec<String> = bytes.iter().map(|b| s.push(&[*b])).collect();
        assert_eq!(shown, ["a", "", "", "", "\u{1f44b}", "b"]);
        assert_eq!(s.push(b"\xff\xe2\x82"), "\u{fffd}");
        assert_eq!(s.push(b"x"), "\u{fffd}x");
        assert_eq!(s.push(b"\xf0\x9f"), "");
        assert_eq!(s.finish(), "\u{fffd}");
    }

    #[test]
    fn a_beginning_of_a_stop_string_is_an_overlap() {
        assert_eq!(overlap("hello\nUs", "\nUser:"), 3);
        assert_eq!(overlap("hello", "\nUser:"), 0);
        assert_eq!(overlap("\nUser:", "\nUser:"), 0);
        assert_eq!(overlap("x\u{e9}", "\u{e9}\u{e8}"), 2);
    }
}
