//! Going on with a chat that was saved.

use super::keep::Opened;
use super::state::Chat;
use crate::chat::Role;
use crate::commands::output::{Printer, print};
use crate::error::{Result, escape};

impl Chat<'_> {
    /// Goes on with a saved chat; `system` is what the command line asks for.
    pub fn resume(&mut self, opened: Opened, system: Option<&str>) -> Result<()> {
        let Opened { name, saved, past } = opened;
        let same_model = past.fingerprint == self.keep.fingerprint();
        let log = &self.run.log;
        if !same_model {
            let model = past.model.display();
            log.note(&format!("this chat was with {model} and its template: what was said is read anew"));
        }
        if past.torn {
            log.note("the last line of this chat was not written to its end: it is dropped");
        }
        if past.unfinished {
            log.note("the last answer was not finished: what had come is kept");
        }
        let settings: Vec<(&str, &str)> = past
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            // A flag on the command line counts more than the chat's setting.
            .filter(|(name, _)| !self.start.settings.given.iter().any(|g| g == name))
            .collect();
        // All settings are changed at once, as some need others. If that fails, they are changed one by one, without those that fail.
        self.run.options = match (self.start.settings.change)(&self.start, &settings) {
            Ok((options, _)) => options,
            Err(_) => settings.iter().fold(self.start.clone(), |options, &(name, value)| {
                (options.settings.change)(&options, &[(name, value)]).map(|set| set.0).unwrap_or_else(|e| {
                    log.warn(&format!("this chat's {name} {value} is ignored: {e}"));
                    options
                })
            }),
        };
        if let Err(e) = self.apply_settings(None) {
            self.run.log.warn(&format!("what was set in this chat is ignored: {e}"));
            self.run.options = self.start.clone();
            self.apply_settings(None)?;
        } else if !settings.is_empty() {
            let said: Vec<String> = settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
            self.run.log.note(&format!("as set in this chat: {}", said.join(", ")));
        }
        match saved {
            Some(saved) => self.keep.go_on(saved, &past),
            None => {
                self.keep.begin();
                if !self.run.options.no_save {
                    self.run.log.note(&format!("{name} is open in another pp-run: this one goes on in a copy"));
                }
                past.settings.iter().for_each(|(name, value)| self.keep.set(name, value, &self.run.log));
            }
        }
        if let Some(question) = &past.unanswered {
            self.run.log.note("the last question had no answer: it is here to be asked again");
            self.initial = self.typed(&question.message.content);
        }
        self.attached.clear();
        self.marks.clear();
        self.conversation.resume(past.turns, same_model && !past.by_hand);
        // A system prompt of the configuration is for chats that begin, not for this one.
        let asked_for = self.start.settings.given.iter().any(|g| g.starts_with("system-prompt"));
        if let Some(system) = system.filter(|s| asked_for && self.conversation.system() != Some(s)) {
            self.conversation.set_system(system);
            self.run.log.note("the system prompt is another one now, as the command line says");
        }
        let n = self.conversation.n_exchanges();
        self.run.log.note(&format!("going on with {name}: {n} question{}", if n == 1 { "" } else { "s" }));
        if !self.once {
            self.show_last()?;
        }
        self.keep_turns(None);
        Ok(())
    }

    /// Shows the last exchange, so that the user sees where the conversation is.
    fn show_last(&mut self) -> Result<()> {
        let messages = self.conversation.messages();
        let Some(at) = messages.iter().rposition(|m| m.role == Role::User) else { return Ok(()) };
        let asked: Vec<String> = messages[at].content.lines().map(escape).collect();
        print(&format!("{}{}\n", self.style.prompt("> "), asked.join("\n")))?;
        for answer in &messages[at + 1..] {
            let mut printer = Printer::new(&self.style, &self.run.options.look, None);
            printer.show(&answer.content)?;
            printer.end()?;
        }
        Ok(())
    }
}
