//! Turns of a conversation.

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

use crate::tokenizer::Token;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that come first.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Name in templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// What.
    pub content: String,
}

/// A turn, and what it added to the timeline of tokens.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who says what
    pub message: Message,
    /// How much of the timeline before it stays: all of it, unless the prompt was made anew
    pub from: usize,
    /// What comes then: of a user's turn, all up to where the answer begins; of an answer, what was drawn, less the token that ended it
    pub tokens: Vec<Token>,
    /// Of a user's turn, the text that the timeline stands for, with marks for turns that name special tokens; empty if it was not
    /// needed yet
    pub(super) text: String,
    /// Of an answer: its tokens are what its text says
    pub(super) exact: bool,
    /// Whether its text would be read as control tokens; not known before it is needed
    pub(super) special: OnceCell<bool>,
}

/// What follows from a turn is no part of it.
impl PartialEq for Turn {
    fn eq(&self, other: &Turn) -> bool {
        let all = |t: &Turn| (t.message.clone(), t.from, t.exact);
        all(self) == all(other) && self.tokens == other.tokens
    }
}

impl Turn {
    /// A turn without tokens: they are made when they are needed.
    pub fn new(role: Role, content: &str) -> Turn {
        let message = Message { role, content: content.to_owned() };
        Turn { message, from: 0, tokens: Vec::new(), text: String::new(), exact: false, special: OnceCell::new() }
    }

    /// Its tokens are made anew when they are needed.
    pub(super) fn forget_tokens(&mut self) {
        *self = Turn::new(self.message.role, &self.message.content);
    }
}

/// What the model is told of an answer that the user cut short.
pub(super) const CUT: &str = "\n[The user stopped this answer here.]";
