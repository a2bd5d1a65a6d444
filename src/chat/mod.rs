//! A conversation: its turns, their text, and the tokens that the model sees.

mod editor;
mod template;
mod terminal;

pub use editor::{Editor, Input};
pub use template::{Message, Role, Template};
pub use terminal::{Style, exit_cleanly_on_sigterm};

use crate::error::{Error, Result};
use crate::tokenizer::{Token, Tokenizer};

/// Turns, and the tokens of the timeline that they became.
///
/// Earlier tokens are never made again from text: an answer stays the tokens that were drawn, and only what follows it is
/// tokenised, so that the cache of the session stays valid.
#[derive(Debug)]
pub struct Conversation<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
    /// The user may name special tokens.
    parse_special: bool,
    messages: Vec<Message>,
    tokens: Vec<Token>,
    /// The text that `tokens` stand for.
    text: String,
    /// Tokens and text before the last answer, for another one.
    before_answer: (usize, usize),
}

/// Characters for private use: they mark where a turn's own text goes while the template is rendered around it.
const MARK: [char; 2] = ['\u{f8f0}', '\u{f8f1}'];

impl<'a> Conversation<'a> {
    /// An empty conversation, or one with a system prompt.
    pub fn new(template: &'a Template, tokenizer: &'a Tokenizer, system: Option<&str>, parse_special: bool) -> Self {
        let mut conversation = Conversation {
            template,
            tokenizer,
            parse_special,
            messages: Vec::new(),
            tokens: Vec::new(),
            text: String::new(),
            before_answer: (0, 0),
        };
        if let Some(content) = system.filter(|s| !s.is_empty()) {
            conversation.messages.push(Message { role: Role::System, content: content.to_owned() });
        }
        conversation
    }

    /// The turns.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds the user's turn and returns the tokens of the whole prompt, up to where the answer begins. An error leaves the
    /// conversation as it was.
    pub fn ask(&mut self, content: &str) -> Result<&[Token]> {
        self.messages.push(Message { role: Role::User, content: content.to_owned() });
        let appended = self.append_prompt();
        if appended.is_err() {
            self.messages.pop();
        }
        appended?;
        Ok(&self.tokens)
    }

    /// Takes the user's last turn back, with an answer if there is one. `false` if there is none.
    pub fn undo(&mut self) -> bool {
        let Some(last) = self.messages.iter().rposition(|m| m.role == Role::User) else { return false };
        self.messages.truncate(last);
        // The text of what remains is made again; equal tokens are found in the cache.
        self.tokens.clear();
        self.text.clear();
        true
    }

    /// Takes the last answer back and returns the prompt's tokens for another one; `None` if there is no answer.
    pub fn retry(&mut self) -> Option<&[Token]> {
        self.messages.pop_if(|m| m.role == Role::Assistant)?;
        self.tokens.truncate(self.before_answer.0);
        self.text.truncate(self.before_answer.1);
        Some(&self.tokens)
    }

    /// Adds the model's turn: its text and the tokens that it was drawn as.
    pub fn answer(&mut self, content: &str, tokens: &[Token]) {
        self.before_answer = (self.tokens.len(), self.text.len());
        self.messages.push(Message { role: Role::Assistant, content: content.to_owned() });
        self.tokens.extend_from_slice(tokens);
        self.text.push_str(content);
    }

    /// Forgets everything but the system prompt.
    pub fn clear(&mut self) {
        self.messages.retain(|m| m.role == Role::System);
        self.tokens.clear();
        self.text.clear();
    }

    /// Extends tokens and text to the prompt of the current turns.
    fn append_prompt(&mut self) -> Result<()> {
        let rendered = self.template.render(&self.messages, true)?;
        // Turns that name special tokens are rendered as marks, so that their text can be tokenised as text.
        let hidden: Vec<usize> =
            (0..self.messages.len()).filter(|&i| !self.parse_special && self.names_special(i)).collect();
        let marked = if hidden.is_empty() { rendered.clone() } else { self.render_marked(&hidden)? };

        let known = !self.text.is_empty() && rendered.starts_with(&self.text);
        if !known {
            let add_special = !self.begins_with_bos(&rendered);
            self.tokens = self.encode(&marked, &hidden, add_special)?;
            self.text = rendered;
            return Ok(());
        }
        // Only what is new. Marks of earlier turns are within the known text, except when that text is hidden itself.
        let rest = &rendered[self.text.len()..];
        let rest = if hidden.is_empty() {
            rest.to_owned()
        } else {
            let known_marked = self.mark_known(&hidden);
            marked.strip_prefix(known_marked.as_str()).map_or_else(|| rest.to_owned(), str::to_owned)
        };
        let mut more = self.encode(&rest, &hidden, false)?;
        // The token that ended the answer is the first of the text between the turns.
        if let (Some(last), Some(first)) = (self.tokens.last(), more.first())
            && last == first
            && self.tokenizer.is_eog(*last)
        {
            more.remove(0);
        }
        self.tokens.extend(more);
        self.text = rendered;
        Ok(())
    }

    /// Whether a turn's text would be read as control tokens.
    fn names_special(&self, i: usize) -> bool {
        let content = &self.messages[i].content;
        let Ok(tokens) = self.tokenizer.encode(content, false, true) else { return false };
        tokens.iter().any(|&t| self.tokenizer.piece(t, false).is_empty() && !self.tokenizer.piece(t, true).is_empty())
    }

    fn mark(i: usize) -> String {
        format!("{}{i}{}", MARK[0], MARK[1])
    }

    fn render_marked(&self, hidden: &[usize]) -> Result<String> {
        let mut messages = self.messages.clone();
        for &i in hidden {
            messages[i].content = Conversation::mark(i);
        }
        let rendered = self.template.render(&messages, true)?;
        match hidden.iter().all(|&i| rendered.matches(&Conversation::mark(i)).count() == 1) {
            true => Ok(rendered),
            false => Err(Error::malformed(
                "a turn names special tokens of the model, and its chat template leaves no way to take them as plain text: \
                 rephrase it, or use --parse-special",
            )),
        }
    }

    /// The known text with the hidden turns marked.
    fn mark_known(&self, hidden: &[usize]) -> String {
        hidden
            .iter()
            .fold(self.text.clone(), |text, &i| text.replacen(&self.messages[i].content, &Conversation::mark(i), 1))
    }

    fn begins_with_bos(&self, text: &str) -> bool {
        self.tokenizer.bos().is_some_and(|bos| {
            let bos = self.tokenizer.piece(bos, true);
            !bos.is_empty() && text.as_bytes().starts_with(&bos)
        })
    }

    /// Tokens of a rendered text: the template's own words may name special tokens, marked turns may not.
    fn encode(&self, text: &str, hidden: &[usize], add_special: bool) -> Result<Vec<Token>> {
        let mut tokens = Vec::new();
        let mut rest = text;
        let mut add_special = add_special;
        loop {
            let next = hidden.iter().filter_map(|&i| Some((rest.find(&Conversation::mark(i))?, i))).min();
            let (plain, after) = match next {
                Some((at, _)) => rest.split_at(at),
                None => (rest, ""),
            };
            if !plain.is_empty() || add_special {
                tokens.extend(self.tokenizer.encode(plain, add_special, true)?);
                add_special = false;
            }
            let Some((_, i)) = next else { return Ok(tokens) };
            tokens.extend(self.tokenizer.encode(&self.messages[i].content, false, false)?);
            rest = &after[Conversation::mark(i).len()..];
        }
    }
}
