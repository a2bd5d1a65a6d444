//! The state of a chat, and the methods that all other parts of the chat use.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::keep::Keep;
use super::parameters::how;
use crate::chat::{Around, Conversation, Editor, Hush, Input, Style, Template, Watch};
use crate::commands::answer::{Answer, Run, answer, constraint, marks, sampler};
use crate::commands::drafts::Drafter;
use crate::commands::output::Printer;
use crate::commands::run::Options;
use crate::commands::{prompt_cache, pruning};
use crate::constraint::{Constraint, Grammar};
use crate::engine::Timeline;
use crate::error::{Error, Result};
use crate::generate::{Draft, Guide};
use crate::stats::Stats;
use crate::tokenizer::Token;

/// How often the beginning of a long answer is written to disk.
const PART: Duration = Duration::from_secs(1);

pub struct Chat<'a> {
    pub run: Run<'a>,
    pub style: Style,
    pub session: Box<dyn Timeline<'a> + 'a>,
    /// How many answers to the last question there were before
    pub attempt: u32,
    /// What holds answers to their form, if they are to have one
    pub constraint: Option<Constraint>,
    pub conversation: Conversation<'a>,
    /// The conversations that `/push` remembers
    pub marks: Vec<Conversation<'a>>,
    pub keep: Keep,
    /// Text of files that go with the next message
    pub attached: String,
    /// The text that the line editor begins with
    pub initial: String,
    /// The next message takes the place of the last exchange.
    pub replaces: bool,
    /// The options of the command line, before any setting of a chat
    pub start: Options,
    pub watch: Watch,
    pub totals: Totals,
    /// The prompt that is to be kept, until it is
    pub kept: Option<prompt_cache::Prompt>,
    /// The last prompt, and the numbers of its answer
    pub last: Option<(Vec<Token>, Stats)>,
    /// The user knows that the context is nearly full.
    pub told: bool,
    /// All numbers are shown after an answer.
    pub verbose: bool,
    /// What reads the user's turns, in a chat of several
    pub editor: Option<Editor>,
    /// The chat ends after one turn.
    pub once: bool,
}

/// Numbers of a whole chat.
#[derive(Debug, Default)]
pub struct Totals {
    pub answers: usize,
    pub read: usize,
    pub cached: usize,
    pub read_time: Duration,
    pub written: usize,
    pub writing_time: Duration,
    /// Of the last answer
    pub seed: Option<u32>,
}

impl<'a> Chat<'a> {
    /// A chat that begins. `once`: it ends after one turn.
    pub fn new(
        run: Run<'a>,
        session: Box<dyn Timeline<'a> + 'a>,
        watch: Watch,
        template: &'a Template,
        system: Option<&str>,
        once: bool,
    ) -> Result<Chat<'a>> {
        let options = &run.options;
        Ok(Chat {
            style: Style::new(&options.look),
            start: options.clone(),
            watch,
            initial: String::new(),
            replaces: false,
            attempt: 0,
            constraint: constraint(&run)?,
            conversation: Conversation::new(template, run.tokenizer, system, options.parse_special),
            verbose: options.log.verbosity > 3,
            keep: Keep::new(&run, template),
            run,
            session,
            marks: Vec::new(),
            attached: String::new(),
            totals: Totals::default(),
            kept: None,
            last: None,
            told: false,
            editor: None,
            once,
        })
    }

    /// What the user types.
    pub fn read(&mut self) -> Result<Input> {
        let editor = self.editor.as_mut().expect("a chat of several turns has one");
        self.watch.reading.store(true, Ordering::Relaxed);
        let log = &self.run.log;
        let input = editor.read(&self.style, &std::mem::take(&mut self.initial), &|e| log.error(&e.to_string()));
        self.watch.reading.store(false, Ordering::Relaxed);
        if matches!(input, Ok(Input::Interrupt)) {
            self.run.signals.take_interrupt();
        }
        input
    }

    /// Makes the editor that reads what the user types, with `hush` if it reads keys.
    pub fn make_editor(&mut self, hush: Option<Hush>) -> Result<()> {
        let options = &self.run.options;
        let around = Around {
            keep_history: !options.no_history,
            settings: options.settings.names,
            chats: self.keep.dir().map(PathBuf::from),
        };
        let (away, interrupt) = (self.watch.away.clone(), self.run.signals.interrupt.clone());
        let (editor, note) = Editor::new(hush, options.multiline_input, around, away, interrupt)?;
        note.iter().for_each(|note| self.run.log.note(note));
        self.editor = Some(editor);
        Ok(())
    }

    /// Makes what the settings describe: the style, the pruning. Of settings that are the same as `before` nothing is made anew.
    pub fn apply_settings(&mut self, before: Option<&Options>) -> Result<()> {
        self.style = Style::new(&self.run.options.look);
        let options = &self.run.options;
        if before.is_none_or(|b| b.sampling != options.sampling) {
            // Settings that no answer can be drawn by are an error now, not at the next answer.
            sampler(&self.run, self.session.as_ref(), 0)?;
        }
        if before.is_none_or(|b| b.form != options.form) {
            self.run.grammar = options.form.as_ref().map(Grammar::new).transpose()?;
            self.constraint = constraint(&self.run)?;
        }
        let options = &self.run.options;
        if options.draft != self.start.draft
            && let Some(Draft::Model(path)) = &options.draft
            && self.run.drafter.as_ref().map(Drafter::path) != Some(path)
        {
            let hint = "leave, and start with --draft model:FILE (--continue goes on with this chat)";
            return Err(Error::usage(format!("a model that drafts is loaded at the start: {hint}")));
        }
        if before.is_none_or(|b| b.prune != options.prune) {
            let n_threads = options.context.n_threads_batch;
            pruning::apply_to(self.session.as_mut(), self.run.model, options.prune.as_ref(), n_threads, &self.run.log)?;
        }
        Ok(())
    }

    /// The part of a user's turn that the user typed, as it would have to be typed again.
    pub fn typed(&self, content: &str) -> String {
        let options = &self.run.options;
        let text = content.strip_prefix(options.in_prefix.as_str()).unwrap_or(content);
        let text = text.strip_suffix(options.in_suffix.as_str()).unwrap_or(text);
        if text.starts_with('/') { format!("/{text}") } else { text.to_owned() }
    }

    /// An answer, shown as it comes, and kept on disk if it takes long and `keeps` says so.
    pub fn generate(&mut self, tokens: &[Token], keeps: bool) -> Result<Answer> {
        let mut printer = Printer::new(&self.style, &self.run.options.look, self.conversation.opens_reasoning());
        let sampler = sampler(&self.run, self.session.as_ref(), self.attempt)?;
        let (mut part, mut since) = (String::new(), Instant::now());
        let (keep, log) = (&mut self.keep, &self.run.log);
        let guide = Guide {
            constraint: self.constraint.as_ref().map(Constraint::anew).transpose()?,
            marks: marks(self.conversation.template()),
            opened: self.conversation.opens_reasoning(),
            ..Guide::default()
        };
        self.kept = prompt_cache::recall(&self.run, self.session.as_mut(), tokens);
        let answer = answer(&self.run, self.session.as_mut(), sampler, guide, tokens, &mut |text| {
            part.push_str(text);
            if keeps && since.elapsed() >= PART {
                keep.part(&std::mem::take(&mut part), log);
                since = Instant::now();
            }
            printer.show(text)
        });
        // If no text was printed there is no line to end.
        let came = answer.as_ref().is_ok_and(|a| !a.tokens.is_empty());
        let ended = if came || printer.begun { printer.end() } else { Ok(()) };
        let answer = answer?;
        self.last = Some((tokens.to_vec(), answer.stats.clone()));
        ended.map(|()| answer)
    }

    /// Keeps the prompt that was answered last, if it is to be kept.
    pub fn keep_prompt(&mut self) {
        if let Some(prompt) = self.kept.take() {
            prompt_cache::keep(&self.run, self.session.as_ref(), prompt);
        }
    }

    /// Brings the file of this chat up to date.
    pub fn keep_turns(&mut self, stats: Option<&Stats>) {
        let how = stats.map(|s| how(&self.run.options, s));
        self.keep.sync(self.conversation.turns(), how, &self.run.log);
    }
}
