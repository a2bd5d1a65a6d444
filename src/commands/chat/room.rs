//! What happens when the context is full: the user decides what is forgotten.

use std::sync::atomic::Ordering;

use super::picture::bar;
use super::state::Chat;
use crate::chat::{Input, Role};
use crate::commands::answer::{Answer, answer, sampler};
use crate::commands::output::{Printer, print};
use crate::commands::run::ContextFull;
use crate::error::{Error, Result};
use crate::generate::{Guide, Predict, StopReason, parted};
use crate::stats::Stats;

/// Share of the context that a shift leaves in use, so that the next shift is some turns away.
const SHIFTED: f64 = 0.5;

/// Longest summary, in tokens.
const SUMMARY: u64 = 256;

const SUMMARISE: &str = "Summarise our conversation so far in at most 150 words, for somebody who has to go on with it. Keep names, \
                         numbers, decisions and open questions.";

impl Chat<'_> {
    /// Tells the user that the context is nearly full, while there is still time to choose.
    pub fn tell_nearly_full(&self, stats: &Stats) {
        let then = match self.run.options.context_full {
            ContextFull::Ask => {
                "when it is full you will be asked what to do (/set context-full stop, shift or summarise decides now)"
            }
            ContextFull::Stop => {
                "when it is full no more turns are taken (/set context-full shift or summarise makes room then)"
            }
            ContextFull::Shift => "when it is full, turns after the first will be forgotten (as context-full says)",
            ContextFull::Summarise => "when it is full, old turns will be summarised (as context-full says)",
        };
        self.run.log.note(&format!(
            "the context is {:.0}% full ({} of {} tokens): {then}",
            100.0 * stats.context_share(),
            stats.context_used,
            stats.context_size
        ));
    }

    /// Adds a turn and returns the tokens of the prompt. If they do not fit, room is made first; `None` if the user stopped that.
    pub fn fitting(&mut self, content: &str) -> Result<Option<Vec<i32>>> {
        let n_ctx = self.session.n_ctx();
        if !self.run.tokenizer.can_fit(content.len(), n_ctx) {
            let n = content.len();
            return Err(Error::malformed(format!(
                "this message has {n} bytes, more than the context of {n_ctx} tokens can hold"
            )));
        }
        let before = self.conversation.clone();
        let tokens = self.conversation.ask(content)?;
        if self.fits(tokens.len()) {
            return Ok(Some(tokens));
        }
        self.conversation = before;
        let mut alone = self.conversation.clone();
        alone.clear();
        let least = alone.ask(content)?.len();
        if !self.fits(least) {
            return Err(Error::malformed(format!(
                "this message has {least} tokens with the system prompt, and {n_ctx} fit in the context: shorten it, or start with -c {}",
                (least * 2).next_multiple_of(1024)
            )));
        }
        let full = format!(
            "the context is full: with this message the conversation has {} tokens, and {n_ctx} fit with the answer",
            tokens.len()
        );
        let choice = match self.run.options.context_full {
            ContextFull::Ask if self.once => ContextFull::Stop,
            ContextFull::Ask => self.choose(&full)?,
            chosen => chosen,
        };
        match choice {
            ContextFull::Shift => self.shift(content).map(Some),
            ContextFull::Summarise => self.summarise(content),
            _ => Err(Error::malformed(format!(
                "{full}: /clear starts anew, /undo takes turns back, /set context-full shift or summarise makes room, and -c {} would \
                 hold it",
                (tokens.len() * 2).next_multiple_of(1024)
            ))),
        }
    }

    /// Whether a prompt of `n` tokens leaves enough room for an answer.
    fn fits(&self, n: usize) -> bool {
        let n_ctx = self.session.n_ctx();
        let room = match self.run.options.limits.predict {
            Predict::AtMost(n) => usize::try_from(n).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        n + room.min(n_ctx / 32).max(1) <= n_ctx
    }

    /// Asks the user what to do about a full context.
    fn choose(&mut self, full: &str) -> Result<ContextFull> {
        self.run.log.note(full);
        self.run.log.note(
            "1 or stop: leave it as it is (/clear, /undo); 2 or shift: forget turns after the first; 3 or summarise: put a summary of old \
             turns in their place",
        );
        let Input::Text(text) = self.read()? else { return Ok(ContextFull::Stop) };
        Ok(match text.trim().to_lowercase().as_str() {
            "2" | "shift" => ContextFull::Shift,
            "3" | "summarise" | "summarize" => ContextFull::Summarise,
            _ => ContextFull::Stop,
        })
    }

    /// Forgets exchanges after the first one, the oldest first, until the prompt with the new turn takes half of the context, or none is
    /// left to forget.
    fn shift(&mut self, content: &str) -> Result<Vec<i32>> {
        let n = self.conversation.n_exchanges();
        let room = (self.session.n_ctx() as f64 * SHIFTED) as usize;
        let without = |kept: usize, forgotten: usize| {
            let mut shorter = self.conversation.clone();
            shorter.forget(kept, forgotten);
            let tokens = shorter.ask(content)?;
            Ok::<_, Error>((shorter, tokens))
        };
        // The first exchange stays if it can.
        let mut best = None;
        for kept in [1, 0] {
            let Some(all) = n.checked_sub(kept).filter(|&all| all > 0) else { continue };
            if !self.fits(without(kept, all)?.1.len()) {
                continue;
            }
            // Bisection for the least number of forgotten exchanges that is enough.
            let (mut few, mut many) = (0, all);
            while many - few > 1 {
                let middle = few.midpoint(many);
                match without(kept, middle)?.1.len() <= room {
                    true => many = middle,
                    false => few = middle,
                }
                if self.run.signals.interrupt.load(Ordering::Relaxed) {
                    return Err(Error::failed("stopped: the conversation is as it was"));
                }
            }
            best = Some((without(kept, many)?, many));
            break;
        }
        let Some(((shorter, tokens), forgotten)) = best else {
            return Err(Error::malformed(
                "this message does not fit in the context, whatever is forgotten: shorten it",
            ));
        };
        self.conversation = shorter;
        self.marks.clear();
        self.run.log.note(&format!(
            "{forgotten} of {n} exchanges are forgotten; the prompt has {} tokens now and is read anew",
            tokens.len()
        ));
        Ok(tokens)
    }

    /// Puts a summary of the older half of the conversation in its place, as part of the system prompt; `None` if it was interrupted.
    fn summarise(&mut self, content: &str) -> Result<Option<Vec<i32>>> {
        let n = self.conversation.n_exchanges();
        let n_ctx = self.session.n_ctx();
        // The exchanges from the beginning on that become the summary: as many as leave room for it.
        let mut old = self.conversation.clone();
        let mut kept = n.div_ceil(2);
        let tokens = loop {
            old.forget(kept, n);
            let tokens = old.ask(SUMMARISE)?;
            if tokens.len() + (SUMMARY as usize) < n_ctx || kept <= 1 {
                break tokens;
            }
            old = self.conversation.clone();
            kept /= 2;
        };
        if tokens.len() >= n_ctx {
            return self.shift(content).map(Some);
        }
        self.run.log.note(&format!("{kept} of {n} exchanges become a summary:"));
        let predict = std::mem::replace(&mut self.run.options.limits.predict, Predict::AtMost(SUMMARY));
        let mut printer = Printer::new(&self.style, &self.run.options.look, old.opens_reasoning());
        let sampler = sampler(&self.run, self.session.as_ref(), 0)?;
        let guide = Guide { opened: old.opens_reasoning(), ..Guide::default() };
        let result = answer(&self.run, self.session.as_mut(), sampler, guide, &tokens, &mut |text| printer.show(text));
        let shown = printer.end();
        self.run.options.limits.predict = predict;
        let Answer { text, stop, .. } = result?;
        shown?;
        if stop == StopReason::Interrupted {
            self.run.signals.take_interrupt();
            self.run.log.note("stopped: the conversation is as it was");
            return Ok(None);
        }
        // Reasoning is no part of the summary.
        let (_, summary) = parted(&text, old.opens_reasoning());
        let summary = summary.trim();
        if summary.is_empty() {
            self.run.log.note("no summary came of it: turns are forgotten instead");
            return self.shift(content).map(Some);
        }
        let mut shorter = self.conversation.clone();
        shorter.summarise(kept, summary);
        let tokens = shorter.ask(content)?;
        if !self.fits(tokens.len()) {
            self.run.log.note("with the summary it does not fit either: turns are forgotten instead");
            return self.shift(content).map(Some);
        }
        self.conversation = shorter;
        self.marks.clear();
        Ok(Some(tokens))
    }

    /// `/context`: how many tokens each turn takes.
    pub fn context(&self) -> Result<()> {
        let n_ctx = self.session.n_ctx();
        let used = self.conversation.timeline().len();
        let line = |what: &str, n: usize| {
            let share = 100.0 * n as f64 / n_ctx as f64;
            format!("{what:<24} {n:>7}  {share:>5.1}%  {}\n", bar(n as f64 / n_ctx as f64, 30))
        };
        let mut out = String::new();
        let (mut texts, mut exchange) = (0, 0);
        for turn in self.conversation.turns() {
            let n = self.conversation.n_tokens(turn)?;
            texts += n;
            let who = match turn.message.role {
                Role::System => "system".to_owned(),
                Role::User => {
                    exchange += 1;
                    format!("{exchange:>3} you")
                }
                Role::Assistant => "    answer".to_owned(),
            };
            out.push_str(&line(&who, n));
        }
        out.push_str(&line("marks between turns", used.saturating_sub(texts)));
        out.push_str(&line("free", n_ctx.saturating_sub(used)));
        print(&format!("{used} of {n_ctx} tokens in use ({:.1}%)\n{out}", 100.0 * used as f64 / n_ctx as f64))
    }
}
