//! The chat on a terminal.

use std::sync::atomic::Ordering;

use super::run::{Answer, Run, answer, sampler, save};
use super::{print, print_answer, prune};
use crate::chat::{Conversation, Editor, Input, Style, Template, exit_cleanly_on_sigterm};
use crate::cli::options::{PruneOptions, Tristate};
use crate::error::{Error, Kind, Result};
use crate::generate::StopReason;
use crate::sampler::Sampler;
use crate::session::Session;
use crate::stats::Stats;

const HELP: &str = "\
/help           this list
/regen          another answer to the last question
/prune R        leave out this share of heads and channels from the next turn on; /prune off
/clear          forget the conversation
/exit           leave (also /bye, /quit, Ctrl-D)
//text          a message that begins with /
\"\"\"             begins and ends a message of several lines; so does \\ at the end of a line
Ctrl-C          stop the answer; what came is kept
";

const COMMANDS: &[&str] = &["/help", "/?", "/regen", "/prune", "/clear", "/exit", "/quit", "/bye"];

/// Chats until the user leaves.
pub fn chat(run: &Run, template: &Template, system: Option<&str>, first: Option<&str>) -> Result<()> {
    let options = run.options;
    exit_cleanly_on_sigterm()?;
    let mut session = Session::new(run.model, &options.context, 1, 1, run.signals.interrupt.clone())?;
    prune::apply(&mut session, run.model, options.prune.as_ref(), options.context.n_threads_batch)?;
    let mut chat = Chat {
        run,
        prune: options.prune.clone(),
        sampler: sampler(run, &session),
        conversation: Conversation::new(template, run.tokenizer, system, options.parse_special),
        session: &mut session,
    };
    let style = Style::new(if options.simple_io { Tristate::Off } else { options.color });
    let mut editor = Editor::new(options.multiline_input, &run.log)?;
    run.log.note(&format!("context of {} tokens; /help lists commands, Ctrl-D leaves", chat.session.n_ctx()));
    let mut next = first.map(str::to_owned);
    let mut warned = false;
    let mut turns = 0;
    let result = loop {
        let input = match next.take() {
            Some(text) => Input::Text(text),
            None => editor.read(&style.prompt())?,
        };
        let text = match input {
            Input::End => break Ok(()),
            Input::Interrupt if warned => break Err(Error::new(Kind::Interrupted, "interrupted")),
            Input::Interrupt => {
                warned = true;
                run.log.note("Ctrl-C again leaves; so do Ctrl-D and /exit");
                continue;
            }
            Input::Text(text) => text,
        };
        warned = false;
        let word = text.trim();
        let done = match word.to_lowercase().as_str() {
            "" => Ok(()),
            "/exit" | "/quit" | "/bye" | "exit" | "quit" => break Ok(()),
            "/help" | "/?" => print(HELP),
            "/clear" => {
                chat.conversation.clear();
                chat.session.rewind(0);
                run.log.note("the conversation is forgotten");
                Ok(())
            }
            "/regen" => chat.regenerate(),
            command if command == "/prune" || command.starts_with("/prune ") => {
                match chat.set_prune(command["/prune".len()..].trim()) {
                    Ok(said) => run.log.note(&said),
                    Err(e) => run.log.error(&e.to_string()),
                }
                Ok(())
            }
            command if command.starts_with('/') && !command.starts_with("//") => {
                run.log.error(&unknown(word));
                Ok(())
            }
            _ => {
                turns += 1;
                chat.ask(text.strip_prefix('/').filter(|t| t.starts_with('/')).unwrap_or(&text))
            }
        };
        match done {
            Ok(()) => {}
            // What concerns one turn does not end the chat.
            Err(e) if matches!(e.kind(), Kind::Malformed | Kind::Failed) => run.log.error(&e.to_string()),
            Err(e) => break Err(e),
        }
        if options.single_turn && turns > 0 {
            break Ok(());
        }
    };
    let result = result.and_then(|()| prune::write_dump(chat.session, run.model, chat.prune.as_ref()));
    match &options.output_file {
        Some(path) => save(path, chat.conversation.messages()).and(result),
        None => result,
    }
}

fn unknown(word: &str) -> String {
    let nearest = COMMANDS
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(word, a).total_cmp(&strsim::jaro_winkler(word, b)))
        .expect("there are commands");
    format!("unknown command '{word}': did you mean '{nearest}'? (// begins a message with /)")
}

struct Chat<'a, 'm> {
    run: &'a Run<'a>,
    /// What the next turn prunes
    prune: Option<PruneOptions>,
    conversation: Conversation<'a>,
    session: &'a mut Session<'m>,
    sampler: Sampler,
}

impl<'a> Chat<'a, '_> {
    /// `/prune R`, `/prune off`; alone it says what is in force.
    fn set_prune(&mut self, word: &str) -> Result<String> {
        let said = |o: &Option<PruneOptions>| match o {
            Some(o) => format!("{:.0}% of heads and channels are left out from the next turn on", 100.0 * o.ratio),
            None => "nothing is left out".to_owned(),
        };
        if word.is_empty() {
            return Ok(said(&self.prune));
        }
        let ratio = match word {
            "off" => 0.0,
            number => number.parse().ok().filter(|r| (0.0..=0.8).contains(r)).ok_or_else(|| {
                Error::usage(format!("/prune wants a number from 0 to 0.8, or 'off'; got '{number}'"))
            })?,
        };
        let base = self.run.options.prune.clone().unwrap_or_else(|| PruneOptions::new(ratio));
        let prune = (ratio > 0.0).then_some(PruneOptions { ratio, ..base });
        let n_threads = self.run.options.context.n_threads_batch;
        if let Err(e) = prune::apply(self.session, self.run.model, prune.as_ref(), n_threads) {
            // As it was: what worked before works again.
            prune::apply(self.session, self.run.model, self.prune.as_ref(), n_threads)?;
            return Err(e);
        }
        self.prune = prune;
        Ok(said(&self.prune))
    }

    /// One turn of the user's, and the answer.
    fn ask(&mut self, text: &str) -> Result<()> {
        let options = self.run.options;
        let content = format!("{}{text}{}", options.in_prefix, options.in_suffix);
        let before = self.conversation.clone();
        let tokens = self.conversation.ask(&content)?.to_vec();
        if tokens.len() >= self.session.n_ctx() {
            self.conversation = before;
            return Err(Error::malformed(format!(
                "the context is full: with this message the conversation has {} tokens, and {} fit; /clear starts anew, and \
                 -c {} would hold it",
                tokens.len(),
                self.session.n_ctx(),
                (tokens.len() * 2).next_multiple_of(1024)
            )));
        }
        self.answer(&tokens, before)
    }

    /// Another answer to the last turn.
    fn regenerate(&mut self) -> Result<()> {
        let before = self.conversation.clone();
        match self.conversation.retry().map(<[_]>::to_vec) {
            Some(tokens) => self.answer(&tokens, before),
            None => Err(Error::failed("there is no answer to make again")),
        }
    }

    /// Answers the prompt; `before` is the conversation if nothing comes of it.
    fn answer(&mut self, tokens: &[i32], before: Conversation<'a>) -> Result<()> {
        self.run.take_interrupt();
        let result =
            answer(self.run, self.session, &mut self.sampler, tokens, &mut |t| print_answer(t, self.run.options.raw));
        let terminated = self.run.signals.terminate.load(Ordering::Relaxed);
        self.run.take_interrupt();
        let Answer { text, tokens, stop, stats } = match result {
            Err(e) => {
                self.conversation = before;
                return Err(e);
            }
            Ok(answer) => answer,
        };
        if terminated {
            return Err(self.run.signals.error());
        }
        if stop == StopReason::Interrupted && tokens.is_empty() {
            self.conversation = before;
            self.run.log.note("stopped before an answer came: the conversation is as it was");
            return Ok(());
        }
        if !text.ends_with('\n') {
            print("\n")?;
        }
        self.conversation.answer(&text, &tokens);
        self.report(&stop, &stats);
        Ok(())
    }

    fn report(&self, stop: &StopReason, stats: &Stats) {
        let log = &self.run.log;
        if self.run.options.show_timings {
            log.note(&stats.line());
        }
        match stop {
            StopReason::Interrupted => log.note("stopped; what came is kept"),
            StopReason::ContextFull => log.warn(&format!(
                "the context of {} tokens is full, the answer was cut: /clear starts anew, -c N makes it larger",
                self.session.n_ctx()
            )),
            _ => {}
        }
    }
}
