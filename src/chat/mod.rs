//! A conversation: its turns, their text, and the tokens that the model sees.

mod editor;
mod render;
mod template;
mod terminal;

pub use editor::{Editor, Input};
pub use render::{Look, Render};
pub use template::{Message, Role, Template};
pub use terminal::{Style, exit_cleanly_on_sigterm};

use crate::error::{Error, Result};
use crate::tokenizer::{Token, Tokenizer};

/// Turns, and the tokens of the timeline that they became.
///
/// Earlier tokens are never made again from text: an answer stays the tokens that were drawn, and only what follows it is
/// tokenised, so that the cache of the session stays valid.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
    /// The user may name special tokens.
    parse_special: bool,
    messages: Vec<Message>,
    /// The last prompt.
    tokens: Vec<Token>,
    /// The text that `tokens` stand for, with marks for turns that name special tokens.
    text: String,
    /// What the answer to it was drawn as, less the token that ended it; `None` if that is not what its text says.
    drawn: Option<Vec<Token>>,
}

/// Characters for private use: they mark where a turn's own text goes while the template is rendered around it.
const MARK: [char; 2] = ['\u{f8f0}', '\u{f8f1}'];

impl<'a> Conversation<'a> {
    /// An empty conversation, or one with a system prompt.
    pub fn new(template: &'a Template, tokenizer: &'a Tokenizer, system: Option<&str>, parse_special: bool) -> Self {
        let mut messages = Vec::new();
        if let Some(content) = system.filter(|s| !s.is_empty()) {
            messages.push(Message { role: Role::System, content: content.to_owned() });
        }
        let (tokens, text) = Default::default();
        Conversation { template, tokenizer, parse_special, messages, tokens, text, drawn: None }
    }

    /// The turns.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds the user's turn and returns the tokens of the whole prompt, up to where the answer begins. An error leaves the
    /// conversation as it was.
    pub fn ask(&mut self, content: &str) -> Result<&[Token]> {
        self.messages.push(Message { role: Role::User, content: content.to_owned() });
        match self.prompt() {
            Ok((tokens, text)) => {
                (self.tokens, self.text, self.drawn) = (tokens, text, None);
                Ok(&self.tokens)
            }
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    /// Takes the last answer back and returns the prompt's tokens for another one; `None` if there is no answer.
    pub fn retry(&mut self) -> Option<&[Token]> {
        self.messages.pop_if(|m| m.role == Role::Assistant)?;
        self.drawn = None;
        Some(&self.tokens)
    }

    /// Adds the model's turn: its text as shown, and the tokens that were drawn. Tokens that are not in the text, because
    /// a stop string cut it, are not part of the conversation; nor is the token that ended it, which the template writes.
    pub fn answer(&mut self, mut text: &str, mut tokens: &[Token]) {
        if let Some((&last, before)) = tokens.split_last()
            && self.tokenizer.is_eog(last)
        {
            tokens = before;
            let name = self.tokenizer.piece(last, true);
            text = str::from_utf8(&name).ok().and_then(|n| text.strip_suffix(n)).unwrap_or(text);
        }
        let spells = |special| {
            let bytes: Vec<u8> = tokens.iter().flat_map(|&t| self.tokenizer.piece(t, special)).collect();
            String::from_utf8_lossy(&bytes) == text
        };
        self.drawn = (spells(false) || spells(true)).then(|| tokens.to_vec());
        self.messages.push(Message { role: Role::Assistant, content: text.to_owned() });
    }

    /// Forgets everything but the system prompt.
    pub fn clear(&mut self) {
        self.messages.retain(|m| m.role == Role::System);
        self.drawn = None;
    }

    /// Tokens and marked text of the turns so far.
    fn prompt(&self) -> Result<(Vec<Token>, String)> {
        // Turns that name special tokens are rendered as marks, so that their text can be tokenised as text.
        let hidden: Vec<usize> =
            (0..self.messages.len()).filter(|&i| !self.parse_special && self.names_special(i)).collect();
        let text = self.render(&hidden)?;
        let known = self.drawn.as_ref().and_then(|drawn| {
            let i = self.messages.len() - 2;
            let answer = if hidden.contains(&i) { mark(i) } else { self.messages[i].content.clone() };
            Some((drawn, text.strip_prefix(&self.text)?.strip_prefix(&answer)?))
        });
        let tokens = match known {
            Some((drawn, new)) => [&self.tokens, drawn, &self.encode(new, &hidden, false)?[..]].concat(),
            None => self.encode(&text, &hidden, !self.begins_with_bos(&text))?,
        };
        Ok((tokens, text))
    }

    /// Whether a turn's text would be read as control tokens.
    fn names_special(&self, i: usize) -> bool {
        let content = &self.messages[i].content;
        let Ok(tokens) = self.tokenizer.encode(content, false, true) else { return false };
        tokens.iter().any(|&t| self.tokenizer.piece(t, false).is_empty() && !self.tokenizer.piece(t, true).is_empty())
    }

    /// The text of the turns, with a mark for each hidden one.
    fn render(&self, hidden: &[usize]) -> Result<String> {
        let mut messages = self.messages.clone();
        for &i in hidden {
            messages[i].content = mark(i);
        }
        let text = self.template.render(&messages, true)?;
        match hidden.iter().all(|&i| text.matches(&mark(i)).count() == 1) {
            true => Ok(text),
            false => Err(Error::malformed(
                "a turn names special tokens of the model, and its chat template leaves no way to take them as plain text: \
                 rephrase it, or use --parse-special",
            )),
        }
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
            let next = hidden.iter().filter_map(|&i| Some((rest.find(&mark(i))?, i))).min();
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
            rest = &after[mark(i).len()..];
        }
    }
}

/// Stands for turn `i`.
fn mark(i: usize) -> String {
    format!("{}{i}{}", MARK[0], MARK[1])
}
