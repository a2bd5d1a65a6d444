//! An answer that is pulled out of a session piece by piece.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::answer::{Answer, Guide, Next, Step};
use super::draft::Drafts;
use super::stop::{Limits, StopReason};
use crate::engine::Timeline;
use crate::error::{Kind, Result};
use crate::sampler::Sampler;
use crate::stats::Drafted;
use crate::tokenizer::{Token, Tokenizer};

/// Decodes what an answer asks for: an iterator over pieces of its text.
pub struct Pull<'a, 'm, 'd> {
    session: &'a mut dyn Timeline<'m>,
    answer: Answer<'a>,
    /// The token that was drawn last, if it is to be decoded
    pending: Option<Token>,
    /// What makes drafts, if there are any
    drafts: Option<Drafts<'a, 'd>>,
    interrupt: Arc<AtomicBool>,
}

impl<'a, 'm, 'd> Pull<'a, 'm, 'd> {
    /// An answer to what the session has processed, with drafts if the session takes any. It ends soon after `interrupt` is set.
    pub fn new(
        session: &'a mut dyn Timeline<'m>,
        tokenizer: &'a Tokenizer,
        sampler: Sampler,
        limits: Limits,
        guide: Guide,
        drafts: Option<Drafts<'a, 'd>>,
        interrupt: Arc<AtomicBool>,
    ) -> Pull<'a, 'm, 'd> {
        let room = session.n_ctx() - session.n_past();
        let drafts = drafts.filter(|_| session.own().is_some_and(|s| s.max_draft() > 0));
        Pull { answer: Answer::new(limits, tokenizer, sampler, guide, room), session, pending: None, drafts, interrupt }
    }

    /// When the first token was drawn.
    pub fn first_token(&self) -> Option<Instant> {
        self.answer.first_token()
    }

    /// Time that choosing tokens took, and how many of them the model thought.
    pub fn drawn(&self) -> (Duration, u64) {
        self.answer.drawn()
    }

    /// What became of drafts, if there could be any.
    pub fn drafted(&self) -> Option<Drafted> {
        self.drafts.as_ref().map(Drafts::done)
    }

    /// Whether the answer has the form that it is to have; `None` if it is to have none.
    pub fn is_whole(&mut self) -> Option<bool> {
        self.answer.is_whole()
    }

    /// Ends the answer and gives back the tokens that were drawn and why it ended.
    pub fn finish(self) -> (Vec<Token>, StopReason) {
        self.answer.finish()
    }

    /// The last token goes into the model, with a draft of those after it, and the next ones come out; the text that can be shown.
    fn step(&mut self) -> Result<String> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Ok(self.answer.interrupt());
        }
        let Some(token) = self.pending.take() else {
            let step = self.answer.push(self.session.logits())?;
            return Ok(self.take(step));
        };
        let (draft, n_draft) = match self.decode(token) {
            Err(e) if e.kind() == Kind::Interrupted => return Ok(self.answer.interrupt()),
            result => result?,
        };
        let mut text = String::new();
        let mut n_accepted = 0;
        loop {
            let logits = match self.session.own() {
                Some(session) => session.draft_logits(n_accepted),
                None => self.session.logits(),
            };
            let step = self.answer.push(logits)?;
            text.push_str(&self.take(step));
            // The sampler has the last word: what it drew otherwise counts, and the rest of the draft does not.
            if self.pending.is_none() || n_accepted == n_draft || self.pending != draft.get(n_accepted).copied() {
                break;
            }
            n_accepted += 1;
        }
        if let Some(session) = self.session.own_mut() {
            session.keep_draft(n_accepted);
        }
        if let Some(drafts) = &mut self.drafts {
            drafts.learn(draft.len(), n_accepted);
        }
        Ok(text)
    }

    /// Remembers what is to be decoded next; the text that can be shown.
    fn take(&mut self, step: Step) -> String {
        self.pending = match step.next {
            Next::Decode(token) => Some(token),
            Next::Stop(_) => None,
        };
        step.text
    }

    /// The token goes into the model, with a draft of what comes after it. Returns the draft, and how many tokens of it went in.
    fn decode(&mut self, token: Token) -> Result<(Vec<Token>, usize)> {
        let (Some(drafts), Some(session)) = (&mut self.drafts, self.session.own_mut()) else {
            self.session.decode(token)?;
            return Ok((Vec::new(), 0));
        };
        if drafts.is_next_computed() {
            // The model that drafts has the processors meanwhile.
            session.pause();
        }
        // The last token that is drawn is not decoded.
        let most = session.max_draft().min(self.answer.most_left().saturating_sub(1));
        let draft = drafts.propose(session.tokens(), token, most)?;
        let n_draft = session.decode_draft(token, &draft)?;
        Ok((draft, n_draft))
    }
}

impl Iterator for Pull<'_, '_, '_> {
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
