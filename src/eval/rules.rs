//! By whose rules a context and its continuation become tokens.

use super::python::strip_end;
use crate::engine::Request;
use crate::error::Result;
use crate::tokenizer::{Token, Tokenizer};

/// Rows that the paper computes together.
pub const PAPER_BATCH: usize = 20;

/// Tokens of a row at most in the paper.
pub const PAPER_LENGTH: usize = 512;

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// lm-evaluation-harness's
    LmEval,
    /// Those of Probe Pruning's paper, as its code has them
    Paper,
}

/// A context, and one way in which it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What is read
    pub context: String,
    /// What is scored, with the space before it
    pub continuation: String,
}

impl Rules {
    /// Name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Rules::LmEval => "lm-eval",
            Rules::Paper => "pp",
        }
    }

    /// The tokens of the pairs of a question, of which no more than `max_length` are read. The error is a message about one of them.
    pub fn requests(
        self,
        tokenizer: &Tokenizer,
        pairs: &[Pair],
        max_length: usize,
    ) -> Result<Result<Vec<Request>, String>> {
        let mut requests: Vec<Request> = Vec::with_capacity(pairs.len());
        let mut context: Option<(&str, Vec<Token>)> = None;
        for pair in pairs {
            let (text, continuation) = match self {
                Rules::LmEval => {
                    // Spaces at a context's end belong to the word after them.
                    let text = strip_end(&pair.context);
                    (text, format!("{}{}", &pair.context[text.len()..], pair.continuation))
                }
                Rules::Paper => (pair.context.as_str(), pair.continuation.clone()),
            };
            if context.as_ref().is_none_or(|c| c.0 != text) {
                context = Some((text, encode(tokenizer, text)?));
            }
            let (_, of_context) = context.as_ref().expect("made above");
            let mut tokens = of_context.clone();
            let scored = match self {
                // The continuation is what the tokens of both together have more than those of the context.
                Rules::LmEval if !text.is_empty() => {
                    encode(tokenizer, &format!("{text}{continuation}"))?.into_iter().skip(tokens.len()).collect()
                }
                _ => tokenizer.encode(&continuation, false, true)?,
            };
            let scored = match tokens.is_empty() || text.is_empty() {
                true => after_nothing(tokenizer, &mut tokens, scored),
                false => scored,
            };
            if scored.is_empty() || tokens.is_empty() {
                return Ok(Err("a choice has no tokens".into()));
            }
            if scored.len() > max_length {
                let n = scored.len();
                return Ok(Err(format!("a choice has {n} tokens, and {max_length} are read at most")));
            }
            let n_scored = scored.len();
            tokens.extend(scored);
            // lm-evaluation-harness does not read the last token, and the paper's code does.
            let most = if self == Rules::LmEval { max_length + 1 } else { max_length };
            tokens.drain(..tokens.len().saturating_sub(most));
            if n_scored == tokens.len() {
                return Ok(Err(format!(
                    "a choice has {n_scored} tokens: of {max_length} none is left for its context"
                )));
            }
            requests.push(Request { tokens, n_scored });
        }
        Ok(Ok(requests))
    }
}

/// Tokens of a text with BOS and EOS as the model wants them; a text that begins with BOS gets no other.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Token>> {
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos()).map(|bos| tokenizer.piece(bos, true));
    let has_bos = bos.is_some_and(|bos| !bos.is_empty() && text.as_bytes().starts_with(&bos));
    tokenizer.encode(text, !has_bos, true)
}

/// What is scored where the context is empty: all of it after BOS, or EOS; or, if it begins with that, what follows it.
fn after_nothing(tokenizer: &Tokenizer, context: &mut Vec<Token>, mut scored: Vec<Token>) -> Vec<Token> {
    let prefix = tokenizer.bos().or(tokenizer.eos());
    *context = prefix.into_iter().collect();
    if prefix.is_some() && scored.first() == prefix.as_ref() {
        scored.remove(0);
    }
    scored
}
