//! One answer in the making: logits go in, text and the next token come out. It never sees a model.

use std::time::Instant;

use super::stop::{Limits, Predict, StopReason, StopStrings};
use super::utf8::Utf8Stream;
use crate::error::Result;
use crate::sampler::Sampler;
use crate::tokenizer::{Token, Tokenizer};

/// An answer so far.
#[derive(Debug)]
pub struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    sampler: &'a mut Sampler,
    predict: Predict,
    /// Special tokens are shown.
    special: bool,
    /// Tokens of the answer that the context has room for
    room: usize,
    tokens: Vec<Token>,
    first_token: Option<Instant>,
    utf8: Utf8Stream,
    stop_strings: StopStrings,
    stop: Option<StopReason>,
}

/// What comes of logits.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Text that can be shown; it may be empty.
    pub text: String,
    pub next: Next,
}

/// How an answer goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The model is to decode this token; the logits after it are the next to push.
    Decode(Token),
    Stop(StopReason),
}

impl<'a> Answer<'a> {
    /// An answer to a prompt, after which the context has room for so many tokens.
    pub fn new(limits: Limits, tokenizer: &'a Tokenizer, sampler: &'a mut Sampler, room: usize) -> Answer<'a> {
        Answer {
            tokenizer,
            sampler,
            predict: limits.predict,
            special: limits.special,
            room,
            tokens: Vec::new(),
            first_token: None,
            utf8: Utf8Stream::default(),
            stop_strings: StopStrings::new(limits.stop),
            stop: (limits.predict == Predict::AtMost(0)).then_some(StopReason::Limit),
        }
    }

    /// Why the answer ended, if it did: then no more logits are pushed.
    pub fn stop(&self) -> Option<&StopReason> {
        self.stop.as_ref()
    }

    /// Tokens that can still be drawn, at most.
    pub fn most_left(&self) -> usize {
        let by_context = (self.room + 1).saturating_sub(self.tokens.len());
        match self.predict {
            Predict::AtMost(n) => by_context.min(usize::try_from(n).unwrap_or(usize::MAX) - self.tokens.len()),
            Predict::Unlimited | Predict::FillContext => by_context,
        }
    }

    /// When the first token was drawn.
    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Draws a token from the logits `[n_vocab]` after the prompt, or after the token that was decoded last.
    pub fn push(&mut self, logits: &[f32]) -> Result<Step> {
        assert!(self.stop.is_none(), "the answer has not ended");
        let token = self.sampler.sample(logits)?;
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(token);
        let bytes = if self.special { self.tokenizer.piece(token, true) } else { self.tokenizer.shown(token) };
        let piece = self.utf8.push(&bytes);
        let (mut text, found) = self.stop_strings.push(&piece);
        self.stop = match found {
            Some(stop) => Some(StopReason::StopString(stop)),
            None => self.limit(token),
        };
        let next = match self.stop.clone() {
            None => Next::Decode(token),
            Some(stop) => {
                // What comes after a stop string is no part of the answer.
                if !matches!(stop, StopReason::StopString(_)) {
                    text.push_str(&self.rest());
                }
                Next::Stop(stop)
            }
        };
        Ok(Step { text, next })
    }

    /// Why the answer ends with this token, if it does, whatever its text is.
    fn limit(&self, token: Token) -> Option<StopReason> {
        if self.tokenizer.is_eog(token) && self.predict != Predict::FillContext {
            Some(StopReason::EndOfText)
        } else if self.predict == Predict::AtMost(self.tokens.len() as u64) {
            Some(StopReason::Limit)
        } else if self.tokens.len() > self.room {
            // The last token was drawn, and there is no room to decode it.
            Some(StopReason::ContextFull)
        } else {
            None
        }
    }

    /// Ends the answer, and returns the text that was held back.
    pub fn interrupt(&mut self) -> String {
        self.stop = Some(StopReason::Interrupted);
        self.rest()
    }

    /// The tokens that were drawn, and why the answer ended.
    pub fn finish(self) -> (Vec<Token>, StopReason) {
        (self.tokens, self.stop.unwrap_or(StopReason::Interrupted))
    }

    /// What was held back is part of an answer that ends.
    fn rest(&mut self) -> String {
        self.stop_strings.finish() + &self.utf8.finish()
    }
}
