//! Drafts: tokens that may come next, guessed from what the text has already. The model computes all of them in one step, and those count
//! that the sampler draws as well.
//!
//! A guess is what came after the last tokens when they came before (prompt lookup decoding). Whether to guess is a matter of account: a
//! draft costs time that is lost if it is wrong. The account is kept in steps of one token, by costs that were measured once
//! (tests/bench/README.md): without a clock, a run makes the same drafts every time.

use crate::stats::Drafted;
use crate::tokenizer::Token;

/// Whether drafts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draft {
    /// No
    Off,
    /// From n-grams of the text so far
    Ngram,
}

/// Tokens that must have come before, the last ones of the text, for a draft to be made of what followed them then.
const LEAST_MATCH: usize = 2;

/// Longer matches count as this long.
const MOST_MATCH: usize = 16;

/// What a token of a draft costs, in steps of one token.
const COST: f64 = 0.2;

/// What drafts may lose at the beginning of an answer, in steps, before one has been right.
const ALLOWANCE: f64 = 0.6;

/// What they may lose more with each step.
const ALLOWANCE_OF_STEP: f64 = 0.01;

/// What was gained counts up to so many steps: a text that repeats no longer soon has no drafts.
const MOST_CREDIT: f64 = 3.0;

/// Makes the drafts of one answer.
#[derive(Debug)]
pub struct Drafts {
    /// What may be lost yet, in steps
    credit: f64,
    done: Drafted,
}

impl Default for Drafts {
    fn default() -> Drafts {
        Drafts { credit: ALLOWANCE, done: Drafted::default() }
    }
}

impl Drafts {
    /// A draft of at most `most` tokens after `tokens` and then `last`; empty if there is nothing to go by, or if drafts lost too much lately.
    pub fn propose(&self, tokens: &[Token], last: Token, most: usize) -> Vec<Token> {
        let most = most.min((self.credit / COST) as usize);
        if most == 0 { Vec::new() } else { followed(tokens, last, most) }
    }

    /// Hears that a step ran, with so many tokens of a draft, and how many of these the sampler drew.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        self.done.steps += 1;
        self.done.drafted += drafted;
        self.done.accepted += accepted;
        let gain = accepted as f64 - COST * drafted as f64;
        self.credit = (self.credit + ALLOWANCE_OF_STEP + gain).min(MOST_CREDIT);
    }

    /// What became of the drafts so far.
    pub fn done(&self) -> Drafted {
        self.done
    }
}

/// The `most` tokens that followed where the longest end of `tokens` and `last` came before, the latest such place; empty if less than
/// [`LEAST_MATCH`] tokens did. What followed may run into the end itself: then it goes on as a repetition.
fn followed(tokens: &[Token], last: Token, most: usize) -> Vec<Token> {
    let before = |end: usize| {
        let back = tokens[..end].iter().rev().zip(tokens.iter().rev());
        back.take(MOST_MATCH - 1).take_while(|(a, b)| a == b).count()
    };
    let mut best = (LEAST_MATCH - 1, None);
    for at in (0..tokens.len()).rev().filter(|&i| tokens[i] == last) {
        let length = 1 + before(at);
        if length > best.0 {
            best = (length, Some(at));
        }
        if length == MOST_MATCH {
            break;
        }
    }
    let Some(at) = best.1 else { return Vec::new() };
    let mut text = [&tokens[at + 1..], &[last]].concat();
    for i in 0..most {
        text.push(text[i]);
    }
    text[..most].to_vec()
}
