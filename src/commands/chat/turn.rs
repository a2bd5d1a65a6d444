//! One turn: a question and its answer.

use std::io::{IsTerminal, stdout};
use std::sync::atomic::Ordering;

use super::state::Chat;
use crate::chat::{Conversation, Hush, Role};
use crate::commands::answer::{Answer, warn_if_cut};
use crate::error::{Error, Result};
use crate::generate::StopReason;
use crate::stats::Stats;

/// How full the context is when the user is told.
const NEARLY_FULL: f64 = 0.8;

impl<'a> Chat<'a> {
    /// Asks and answers one question. It `replaces` the last exchange, or comes after it.
    pub fn ask(&mut self, text: &str, replaces: bool) -> Result<()> {
        self.run.signals.take_interrupt();
        self.attempt = 0;
        let options = &self.run.options;
        let content = format!("{}{}{text}{}", options.in_prefix, self.attached, options.in_suffix);
        self.conversation.set_kwargs(options.template_kwargs.as_ref());
        let before = self.conversation.clone();
        if replaces {
            self.conversation.undo();
        }
        let done = match self.fitting(&content) {
            Ok(Some(tokens)) => self.answer(&tokens, before, true),
            other => {
                self.conversation = before;
                other.map(|_| false)
            }
        };
        self.keep_prompt();
        // If no answer came, the attached files go with the next message instead.
        if let Ok(true) = done {
            self.attached.clear();
        }
        done.map(drop)
    }

    /// Another answer to the last turn.
    pub fn regenerate(&mut self) -> Result<()> {
        self.conversation.set_kwargs(self.run.options.template_kwargs.as_ref());
        let before = self.conversation.clone();
        let nothing = || Error::failed("there is no answer to make again");
        if self.conversation.turns().last().is_none_or(|t| t.message.role != Role::Assistant) {
            return Err(nothing());
        }
        let content = self.conversation.undo().ok_or_else(nothing)?;
        self.attempt = self.attempt.wrapping_add(1);
        let done = match self.fitting(&content) {
            // The chat's file keeps the old answer until there is a new one.
            Ok(Some(tokens)) => self.answer(&tokens, before, false).map(drop),
            other => {
                self.conversation = before;
                other.map(drop)
            }
        };
        self.keep_prompt();
        done
    }

    /// Answers the prompt and returns whether anything came; if nothing did, `before` is the conversation again. A `new` question is written to
    /// the chat's file at once.
    fn answer(&mut self, tokens: &[i32], before: Conversation<'a>, new: bool) -> Result<bool> {
        if new {
            self.keep_turns(None);
        }
        let result = {
            // With keys it is quiet all the time.
            let lines = !self.once && !self.style.has_screen() && stdout().is_terminal();
            let _hush = lines.then(|| Hush::begin(false));
            self.generate(tokens, true)
        };
        let terminated = self.run.signals.terminate.load(Ordering::Relaxed);
        self.run.signals.take_interrupt();
        let answer = match result {
            Err(e) => {
                self.conversation = before;
                self.keep_turns(None);
                return Err(e);
            }
            Ok(answer) => answer,
        };
        warn_if_cut(&self.run, &answer);
        let Answer { text, tokens, stop, stats, .. } = answer;
        let interrupted = stop == StopReason::Interrupted;
        if interrupted && tokens.is_empty() {
            self.conversation = before;
            self.keep_turns(None);
            if terminated {
                return Err(self.run.signals.error());
            }
            self.run.log.note("stopped before an answer came: the conversation is as it was");
            return match self.once {
                true => Err(self.run.signals.error()),
                false => Ok(false),
            };
        }
        self.conversation.answer(&text, &tokens, interrupted)?;
        self.keep_turns(Some(&stats));
        if terminated || (interrupted && self.once) {
            return Err(self.run.signals.error());
        }
        self.report(&stop, &stats);
        Ok(true)
    }

    fn report(&mut self, stop: &StopReason, stats: &Stats) {
        let t = &mut self.totals;
        t.answers += 1;
        t.seed = Some(stats.seed);
        t.read += stats.processed_tokens;
        t.cached += stats.cached_tokens;
        t.read_time += stats.prompt_time;
        t.written += stats.generated_tokens;
        t.writing_time += stats.generation_time;
        let log = &self.run.log;
        if self.run.options.show_timings {
            match self.verbose {
                true => log.note(&stats.line()),
                false => log.status(&stats.short_line(), self.style.has_color()),
            }
        } else if let Some(cut) = stats.cut() {
            log.note(&cut);
        }
        match stop {
            StopReason::Interrupted => log.note("stopped; what came is kept, and the model knows that it was stopped"),
            StopReason::ContextFull => log.warn(&format!(
                "the answer was cut, as the context of {} tokens is full: /clear starts anew, -c N makes it larger",
                self.session.n_ctx()
            )),
            _ => {}
        }
        let full = stats.context_share() >= NEARLY_FULL;
        if full && !self.told {
            self.tell_nearly_full(stats);
        }
        self.told = full;
    }
}
