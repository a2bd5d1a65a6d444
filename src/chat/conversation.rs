//! A conversation: its turns, their text, and the tokens that the model sees.

use super::template::{Kwargs, Template};
use super::turn::{CUT, Message, Role, Turn};
use crate::error::{Error, Result};
use crate::tokenizer::{Cut, REASONING, Token, Tokenizer};

/// Stands in the system prompt before a summary of what is forgotten.
const SUMMARY: &str = "What was said before, in short:\n";

/// Turns, and the tokens of the timeline that they became.
///
/// Earlier tokens are never made again from text: an answer stays the tokens that were drawn, and only what follows it is
/// tokenised, so that the cache of the session stays valid.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    template: &'a Template,
    tokenizer: &'a Tokenizer,
    /// The user's text may name special tokens.
    parse_special: bool,
    /// What the template knows beside the turns
    kwargs: Kwargs,
    turns: Vec<Turn>,
}

/// Characters for private use: they mark where a turn's own text goes while the template is rendered around it.
const MARK: [char; 2] = ['\u{f8f0}', '\u{f8f1}'];

impl<'a> Conversation<'a> {
    /// An empty conversation, or one with a system prompt.
    pub fn new(template: &'a Template, tokenizer: &'a Tokenizer, system: Option<&str>, parse_special: bool) -> Self {
        let turns = system.filter(|s| !s.is_empty()).map(|s| Turn::new(Role::System, s)).into_iter().collect();
        Conversation { template, tokenizer, parse_special, kwargs: Kwargs::new(), turns }
    }

    /// From now on the template knows these variables, and no others that were given before. What was said stays as it was rendered, as far as
    /// the template renders it so again.
    pub fn set_kwargs(&mut self, kwargs: Option<&Kwargs>) {
        self.kwargs = kwargs.cloned().unwrap_or_default();
    }

    /// The template that the turns are rendered with.
    pub fn template(&self) -> &Template {
        self.template
    }

    /// The turns.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// What was said.
    pub fn messages(&self) -> Vec<Message> {
        self.turns.iter().map(|t| t.message.clone()).collect()
    }

    /// What comes before the exchanges: the system prompt, and a summary of what was forgotten.
    pub fn preamble(&self) -> Option<&str> {
        self.turns.first().filter(|t| t.message.role == Role::System).map(|t| t.message.content.as_str())
    }

    /// The system prompt, without a summary.
    pub fn system(&self) -> Option<&str> {
        let text = self.preamble()?;
        let system = text.find(SUMMARY).map_or(text, |at| text[..at].trim_end());
        Some(system).filter(|s| !s.is_empty())
    }

    /// The summary of what was forgotten.
    pub fn summary(&self) -> Option<&str> {
        let text = self.preamble()?;
        text.find(SUMMARY).map(|at| &text[at + SUMMARY.len()..])
    }

    /// Where the exchanges begin: after the system prompt.
    fn first(&self) -> usize {
        usize::from(self.preamble().is_some())
    }

    /// Number of the user's turns.
    pub fn n_exchanges(&self) -> usize {
        self.turns.iter().filter(|t| t.message.role == Role::User).count()
    }

    /// The tokens of all turns.
    pub fn timeline(&self) -> Vec<Token> {
        let mut tokens = Vec::new();
        for turn in &self.turns {
            if turn.message.role == Role::User {
                tokens.truncate(turn.from);
            }
            tokens.extend_from_slice(&turn.tokens);
        }
        tokens
    }

    /// Adds the user's turn and returns the tokens of the whole prompt, up to where the answer begins. An error leaves the
    /// conversation as it was.
    pub fn ask(&mut self, content: &str) -> Result<Vec<Token>> {
        self.turns.push(Turn::new(Role::User, content));
        self.prompt().inspect_err(|_| drop(self.turns.pop()))
    }

    /// Takes the last exchange back and returns what the user had said; `None` if there is none.
    pub fn undo(&mut self) -> Option<String> {
        self.turns.pop_if(|t| t.message.role == Role::Assistant);
        self.turns.pop_if(|t| t.message.role == Role::User).map(|t| t.message.content)
    }

    /// The mark that ends the reasoning, if the prompt that [`Conversation::ask`] made last ends inside of it.
    pub fn opens_reasoning(&self) -> Option<&'static str> {
        let prompt = self.turns.last()?.text.trim_end();
        REASONING.iter().find(|[open, _]| prompt.ends_with(open)).map(|[_, close]| *close)
    }

    /// Adds the model's turn: its text as shown, and the tokens that were drawn. Tokens that are not in the text, because
    /// a stop string cut it, are not part of the conversation; nor is the token that ended it, which the template writes.
    /// The model is told of an answer that was `interrupted`.
    pub fn answer(&mut self, mut text: &str, mut tokens: &[Token], interrupted: bool) -> Result<()> {
        if let Some((&last, before)) = tokens.split_last()
            && self.tokenizer.is_eog(last)
        {
            tokens = before;
            let name = self.tokenizer.piece(last, true);
            text = str::from_utf8(&name).ok().and_then(|n| text.strip_suffix(n)).unwrap_or(text);
        }
        let shown: Vec<u8> = tokens.iter().flat_map(|&t| self.tokenizer.shown(t)).collect();
        let special: Vec<u8> = tokens.iter().flat_map(|&t| self.tokenizer.piece(t, true)).collect();
        let mut turn = Turn::new(Role::Assistant, text);
        turn.exact = [shown, special].iter().any(|bytes| String::from_utf8_lossy(bytes) == text);
        turn.tokens = tokens.to_vec();
        if interrupted {
            turn.message.content.push_str(CUT);
            turn.tokens.extend(self.tokenizer.encode_more(CUT)?);
        }
        self.turns.push(turn);
        Ok(())
    }

    /// Forgets everything but the system prompt.
    pub fn clear(&mut self) {
        self.turns.truncate(self.first());
        if self.summary().is_some() {
            let system = self.system().unwrap_or_default().to_owned();
            self.begin_with(&system, None);
        }
    }

    /// Replaces the system prompt; an empty one is none. A summary stays.
    pub fn set_system(&mut self, text: &str) {
        self.begin_with(text, self.summary().map(str::to_owned).as_deref());
    }

    /// Puts a summary in the place of the first `n` exchanges.
    pub fn summarise(&mut self, n: usize, summary: &str) {
        self.forget(0, n);
        let system = self.system().unwrap_or_default().to_owned();
        self.begin_with(&system, Some(summary));
    }

    fn begin_with(&mut self, system: &str, summary: Option<&str>) {
        let rest = self.turns.split_off(self.first());
        let summary = summary.map(|s| format!("{SUMMARY}{s}"));
        let parts: Vec<&str> =
            [Some(system), summary.as_deref()].into_iter().flatten().filter(|p| !p.is_empty()).collect();
        self.turns.clear();
        if !parts.is_empty() {
            self.turns.push(Turn::new(Role::System, &parts.join("\n\n")));
        }
        self.turns.extend(rest);
        self.forget_tokens();
    }

    /// Forgets `n` exchanges that come after the first `kept`.
    pub fn forget(&mut self, kept: usize, n: usize) {
        let starts: Vec<usize> = (0..self.turns.len()).filter(|&i| self.turns[i].message.role == Role::User).collect();
        let at = |i: usize| starts.get(i).copied().unwrap_or(self.turns.len());
        self.turns.drain(at(kept)..at(kept + n));
        self.forget_tokens();
    }

    /// Goes on from turns that were saved. Their tokens are kept only if they are those of this model (`same_model`); otherwise they are made
    /// anew from the texts.
    pub fn resume(&mut self, turns: Vec<Turn>, same_model: bool) {
        let n_vocab = self.tokenizer.n_vocab();
        let known = |t: &Token| usize::try_from(*t).is_ok_and(|t| t < n_vocab);
        let same_model = same_model && turns.iter().all(|t| t.tokens.iter().all(known));
        self.turns = turns;
        if !same_model {
            self.forget_tokens();
        }
    }

    /// Renders the text of a turn again: it is not saved, as it follows from the turns.
    fn recall(&mut self, i: usize) {
        let turn = &self.turns[i];
        if turn.message.role == Role::User && !turn.tokens.is_empty() && turn.text.is_empty() {
            let messages: Vec<Message> = self.turns[..=i].iter().map(|t| t.message.clone()).collect();
            self.turns[i].text = self.render(&messages, &self.hidden(i + 1)).unwrap_or_default();
        }
    }

    /// Drops the tokens of all turns, because an earlier text has changed: they are made anew with the next prompt.
    fn forget_tokens(&mut self) {
        self.turns.iter_mut().for_each(Turn::forget_tokens);
    }

    /// Makes the tokens of the last turn, which is the user's, and returns those of the whole prompt.
    fn prompt(&mut self) -> Result<Vec<Token>> {
        // Turns that name special tokens are rendered as marks, so that their text can be tokenised as text.
        let (hidden, n) = (self.hidden(self.turns.len()), self.turns.len());
        let text = self.render(&self.messages(), &hidden)?;
        let last = self.turns.len() - 1;
        if last >= 2 {
            self.recall(last - 2);
        }
        let known = match &self.turns[..last] {
            [.., asked, answered] if answered.exact && !asked.text.is_empty() => {
                let content = &answered.message.content;
                let answer = if hidden.contains(&(n - 2)) { hide(n - 2, content) } else { content.clone() };
                text.strip_prefix(&asked.text).and_then(|t| t.strip_prefix(&answer))
            }
            _ => None,
        };
        let before = {
            let mut earlier = self.clone();
            earlier.turns.pop();
            earlier.timeline()
        };
        let (from, tokens) = match known {
            Some(new) => (before.len(), self.encode(new, &hidden, Begins::After)?),
            None => {
                let begins = if self.begins_with_bos(&text) { Begins::Bare } else { Begins::Marked };
                let all = self.encode(&text, &hidden, begins)?;
                let common = before.iter().zip(&all).take_while(|(a, b)| a == b).count();
                (common, all[common..].to_vec())
            }
        };
        let turn = &mut self.turns[last];
        (turn.from, turn.tokens, turn.text) = (from, tokens, text);
        Ok([&before[..from], &turn.tokens].concat())
    }

    /// Those of the first `n` turns that name special tokens, unless the user may name them.
    fn hidden(&self, n: usize) -> Vec<usize> {
        let special = |i: &usize| *self.turns[*i].special.get_or_init(|| self.names_special(*i));
        (0..n).filter(|i| !self.parse_special && special(i)).collect()
    }

    /// Tokens of a turn's own text.
    pub fn n_tokens(&self, turn: &Turn) -> Result<usize> {
        Ok(self.tokenizer.encode(&turn.message.content, false, false)?.len())
    }

    /// Whether a turn's text would be read as control tokens.
    fn names_special(&self, i: usize) -> bool {
        let content = &self.turns[i].message.content;
        let Ok(tokens) = self.tokenizer.encode(content, false, true) else { return false };
        tokens.iter().any(|&t| self.tokenizer.is_control(t))
    }

    /// The text of the turns, with a mark in the place of each `hidden` turn; `hidden` is ascending.
    fn render(&self, messages: &[Message], hidden: &[usize]) -> Result<String> {
        let mut messages = messages.to_vec();
        for &i in hidden {
            messages[i].content = hide(i, &messages[i].content);
        }
        let text = self.template.render(&messages, true, &self.kwargs)?;
        let mut found: Vec<usize> = marks(&text, hidden).map(|(_, i)| i).collect();
        found.sort_unstable();
        match found == hidden {
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

    /// Tokens of a rendered text: the template's own words may name special tokens, marked turns may not. Between two special tokens there is
    /// one text, whoever wrote its parts: a tokenizer may put a space in front of a text, or join letters of its parts.
    fn encode(&self, text: &str, hidden: &[usize], begins: Begins) -> Result<Vec<Token>> {
        if begins != Begins::After && marks(text, hidden).next().is_none() {
            return self.tokenizer.encode(text, begins == Begins::Marked, true);
        }
        let mut parts =
            Parts { tokenizer: self.tokenizer, begins, tokens: Vec::new(), run: String::new(), is_stripped: false };
        let mut rest = text;
        while let Some((at, i)) = marks(rest, hidden).next() {
            parts.words(&rest[..at])?;
            parts.run.push_str(self.turns[i].message.content.trim());
            rest = &rest[at + mark(i).len()..];
        }
        parts.words(rest)?;
        parts.end_run()?;
        Ok(parts.tokens)
    }
}

/// What a text stands after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// Nothing; what the model wants in front of a text is put there
    Marked,
    /// Nothing; it has that itself
    Bare,
    /// Another text
    After,
}

/// Tokens of a text that has parts in which names of special tokens are plain.
struct Parts<'t> {
    tokenizer: &'t Tokenizer,
    begins: Begins,
    tokens: Vec<Token>,
    /// The text after the last special token
    run: String,
    /// White space at its beginning belongs to that token.
    is_stripped: bool,
}

impl Parts<'_> {
    /// Adds words of the template.
    fn words(&mut self, words: &str) -> Result<()> {
        let Cut { before, controls, after, strips } = self.tokenizer.cut_at_controls(words)?;
        self.run.push_str(before);
        if !controls.is_empty() {
            if strips[0] {
                self.run.truncate(self.run.trim_end().len());
            }
            self.end_run()?;
            self.tokens.extend(self.tokenizer.encode(controls, self.begins == Begins::Marked, true)?);
            self.begins = Begins::Bare;
            self.run.push_str(after);
            self.is_stripped = strips[1];
        }
        Ok(())
    }

    /// Makes tokens of what is there.
    fn end_run(&mut self) -> Result<()> {
        let whole = std::mem::take(&mut self.run);
        let run = if self.is_stripped { whole.trim_start() } else { &whole };
        if !run.is_empty() {
            self.tokens.extend(match self.begins {
                Begins::After => self.tokenizer.encode_more(run)?,
                begins => self.tokenizer.encode(run, begins == Begins::Marked, false)?,
            });
            self.begins = Begins::Bare;
        }
        Ok(())
    }
}

/// Turn `i` with a mark in the place of its text, but for the white space around, which a template may take away.
fn hide(i: usize, content: &str) -> String {
    let inner = content.trim();
    let start = content.len() - content.trim_start().len();
    [&content[..start], &mark(i), &content[start + inner.len()..]].concat()
}

/// The mark that stands for turn `i`.
fn mark(i: usize) -> String {
    format!("{}{i}{}", MARK[0], MARK[1])
}

/// The marks in a text: where each begins, and for which of the turns `hidden` it stands; `hidden` is ascending.
fn marks<'t>(text: &'t str, hidden: &'t [usize]) -> impl Iterator<Item = (usize, usize)> + 't {
    text.match_indices(MARK[0]).filter_map(move |(at, open)| {
        let rest = &text[at + open.len()..];
        let i = rest[..rest.find(|c: char| !c.is_ascii_digit())?].parse().ok()?;
        (hidden.binary_search(&i).is_ok() && text[at..].starts_with(&mark(i))).then_some((at, i))
    })
}
