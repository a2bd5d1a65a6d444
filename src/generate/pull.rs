//! An answer that is pulled out of a session piece by piece.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::answer::{Answer, Next};
use super::stop::{Limits, StopReason};
use crate::engine::Timeline;
use crate::error::{Kind, Result};
use crate::sampler::Sampler;
use crate::tokenizer::{Token, Tokenizer};

/// Decodes what an answer asks for: an iterator over pieces of its text.
pub struct Pull<'a, 'm> {
    session: &'a mut dyn Timeline<'m>,
    answer: Answer<'a>,
    /// The token that was drawn last, if it is to be decoded
    pending: Option<Token>,
    interrupt: Arc<AtomicBool>,
}

impl<'a, 'm> Pull<'a, 'm> {
    /// An answer to what the session has processed. It ends soon after `interrupt` is set.
    pub fn new(
        session: &'a mut dyn Timeline<'m>,
        tokenizer: &'a Tokenizer,
        sampler: &'a mut Sampler,
        limits: Limits,
        interrupt: Arc<AtomicBool>,
    ) -> Pull<'a, 'm> {
        let room = session.n_ctx() - session.n_past();
        Pull { answer: Answer::new(limits, tokenizer, sampler, room), session, pending: None, interrupt }
    }

    /// When the first token was drawn.
    pub fn first_token(&self) -> Option<Instant> {
        self.answer.first_token()
    }

    /// Ends the answer and gives back the tokens that were drawn and why it ended.
    pub fn finish(self) -> (Vec<Token>, StopReason) {
        self.answer.finish()
    }

    /// The last token goes into the model, and the next one comes out; the text that can be shown.
    fn step(&mut self) -> Result<String> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Ok(self.answer.interrupt());
        }
        if let Some(token) = self.pending.take() {
            match self.session.decode(token) {
                Err(e) if e.kind() == Kind::Interrupted => return Ok(self.answer.interrupt()),
                result => result?,
            }
        }
        let step = self.answer.push(self.session.logits())?;
        if let Next::Decode(token) = step.next {
            self.pending = Some(token);
        }
        Ok(step.text)
    }
}

impl Iterator for Pull<'_, '_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        while self.answer.stop().is_none() {
            match self.step() {
                Ok(text) if text.is_empty() => {}
                Err(e) => {
                    self.answer.interrupt();
                    return Some(Err(e));
                }
                text => return Some(text),
            }
        }
        None
    }
}
