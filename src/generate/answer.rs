//! One answer in the making: logits go in, text and the next token come out. It never sees a model.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::stop::{Limits, Predict, StopReason, StopStrings};
use super::thoughts::{Part, Thoughts};
use super::utf8::Utf8Stream;
use crate::constraint::Constraint;
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::tokenizer::{Token, Tokenizer};

/// What an answer is to be like.
#[derive(Debug, Default)]
pub struct Guide {
    /// The form of the answer, if it is to have one; what the model thinks before has none
    pub constraint: Option<Constraint>,
    /// The marks around what this model thinks, if it does
    pub marks: Option<[&'static str; 2]>,
    /// The prompt has begun the thoughts, which this mark ends.
    pub opened: Option<&'static str>,
    /// Tokens that the model may think, if there is a limit; then the mark comes that ends the thoughts
    pub budget: Option<u64>,
    /// That mark is to come now. It is taken back when it was seen.
    pub answer_now: Arc<AtomicBool>,
}

/// An answer so far.
#[derive(Debug)]
pub struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    predict: Predict,
    /// Special tokens are shown.
    special: bool,
    /// Tokens of the answer that the context has room for
    room: usize,
    tokens: Vec<Token>,
    first_token: Option<Instant>,
    /// Time that choosing tokens took
    drawing: Duration,
    guide: Guide,
    thoughts: Thoughts,
    /// Tokens that the model thought
    n_thought: u64,
    /// Tokens that come next, whatever the logits are
    forced: VecDeque<Token>,
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
    pub fn new(limits: Limits, tokenizer: &'a Tokenizer, sampler: Sampler, guide: Guide, room: usize) -> Answer<'a> {
        Answer {
            thoughts: Thoughts::new(guide.opened),
            guide,
            n_thought: 0,
            drawing: Duration::ZERO,
            forced: VecDeque::new(),
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

    /// Time that choosing tokens took, and how many of them the model thought.
    pub fn drawn(&self) -> (Duration, u64) {
        (self.drawing, self.n_thought)
    }

    /// Draws a token from the logits `[n_vocab]` after the prompt, or after the token that was decoded last.
    pub fn push(&mut self, logits: &[f32]) -> Result<Step> {
        assert!(self.stop.is_none(), "the answer has not ended");
        let start = Instant::now();
        let token = self.draw(logits)?;
        self.drawing += start.elapsed();
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(token);
        let bytes = if self.special { self.tokenizer.piece(token, true) } else { self.tokenizer.shown(token) };
        let piece = self.utf8.push(&bytes);
        self.think(&piece)?;
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

    /// The next token: one that is forced, or one that is drawn, of those that fit the form where there is one.
    fn draw(&mut self, logits: &[f32]) -> Result<Token> {
        let asked = self.guide.answer_now.swap(false, Ordering::Relaxed);
        if self.thoughts.is_thinking() && self.forced.is_empty() {
            if asked || self.guide.budget.is_some_and(|most| self.n_thought >= most) {
                self.end_thoughts()?;
            }
            self.n_thought += 1;
        }
        if let Some(token) = self.forced.pop_front() {
            self.sampler.accept(token);
            return Ok(token);
        }
        let Some(constraint) = self.guide.constraint.as_mut() else { return self.sampler.sample(logits) };
        let mut token = self.sampler.draw(logits)?;
        if self.thoughts.is_thinking() {
            // The answer is still to come.
            if self.tokenizer.is_eog(token) {
                self.end_thoughts()?;
                return self.draw(logits);
            }
        } else {
            let open = match (self.tokens.is_empty(), self.guide.marks) {
                (true, Some([open, _])) => self.tokenizer.encode(open, false, true)?,
                _ => Vec::new(),
            };
            // Most tokens that a model draws fit. Where one does not, another is drawn of those that do: each comes as often as if only they
            // had been there.
            let opens = |token| open.first() == Some(&token);
            if !opens(token) && !constraint.take(token)? {
                token = self.sampler.draw(constraint.masked(logits, open.first().copied())?)?;
                if !opens(token) && !constraint.take(token)? {
                    return Err(Error::internal("a token that was said to fit the form does not"));
                }
            }
            if opens(token) {
                self.forced.extend(&open[1..]);
            }
        }
        self.sampler.accept(token);
        Ok(token)
    }

    /// Lets the mark come next that ends what the model thinks.
    fn end_thoughts(&mut self) -> Result<()> {
        let close = self.thoughts.close().expect("called inside of thoughts");
        // gpt-oss ends all that it says.
        let end = if close.starts_with("<|start|>") { "<|end|>" } else { "" };
        self.forced.extend(self.tokenizer.encode(&format!("{end}{close}"), false, true)?);
        Ok(())
    }

    /// Follows the text into what the model thinks, and out of it.
    fn think(&mut self, piece: &str) -> Result<()> {
        let was_thinking = self.thoughts.is_thinking();
        let parts = self.thoughts.push(piece);
        let Some(constraint) = self.guide.constraint.as_mut().filter(|_| was_thinking) else { return Ok(()) };
        // The token that ended the mark may have brought the beginning of the answer along.
        let begun: String = parts.into_iter().filter(|(part, _)| *part == Part::Answer).map(|(_, text)| text).collect();
        for token in self.tokenizer.encode(begun.trim(), false, false)? {
            if !constraint.take(token)? {
                return Err(Error::failed(
                    "the answer began with its thoughts' last token, in another form: ask again",
                ));
            }
        }
        Ok(())
    }

    /// Whether the answer has the form that it is to have; `None` if it is to have none.
    pub fn is_whole(&mut self) -> Option<bool> {
        let is_thinking = self.thoughts.is_thinking();
        self.guide.constraint.as_mut().map(|c| !is_thinking && c.is_whole())
    }

    /// Why the answer ends with this token, if it does, whatever its text is.
    fn limit(&self, token: Token) -> Option<StopReason> {
        let is_done = self.guide.constraint.as_ref().is_some_and(|c| c.is_done());
        if is_done || (self.tokenizer.is_eog(token) && self.predict != Predict::FillContext) {
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
