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
    pub message: Message,
    /// How many tokens of the timeline before this turn stay: all of them, unless the prompt was made anew
    pub from: usize,
    /// The tokens after those. A user's turn has all tokens up to where the answer begins; an answer has those that were drawn, without the
    /// one that ended it
    pub tokens: Vec<Token>,
    /// In a user's turn: the rendered text that the whole timeline stands for, with marks for turns that name special tokens. It is empty
    /// until it is needed.
    pub(super) text: String,
    /// In an answer: its tokens spell exactly its text.
    pub(super) exact: bool,
    /// Whether its text names control tokens; this is found out when it is needed.
    pub(super) special: OnceCell<bool>,
}

/// The rendered text and `special` follow from the rest, so they are not compared.
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

    /// Drops the tokens: they are made anew when they are needed.
    pub(super) fn forget_tokens(&mut self) {
        *self = Turn::new(self.message.role, &self.message.content);
    }
}

/// What the model is told of an answer that the user cut short.
pub(super) const CUT: &str = "\n[The user stopped this answer here.]";
