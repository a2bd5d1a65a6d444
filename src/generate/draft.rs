//! Drafts: tokens that may come next, guessed from what the text has already or by a small model. The model computes all of them in one step,
//! and those count that the sampler draws as well.
//!
//! Without a small model a guess is what came after the last tokens when they came before (prompt lookup decoding). Whether to guess is a
//! matter of account: a draft costs time that is lost if it is wrong. The account is kept in steps of one token, by costs that are fixed for a
//! processor ([`kernels::Isa::cost_of_token`]): without a clock, a run makes the same drafts every time.

use std::path::PathBuf;

use super::draft_model::DraftModel;
use crate::error::Result;
use crate::stats::Drafted;
use crate::tokenizer::Token;

/// What makes drafts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Draft {
    /// Nothing
    Off,
    /// N-grams of the text so far
    Ngram,
    /// The model in this file, which has the vocabulary of the one that answers
    Model(PathBuf),
}

/// Tokens that must have come before, the last ones of the text, for a draft to be made of what followed them then.
const LEAST_MATCH: usize = 4;

/// Longer matches count as this long.
const MOST_MATCH: usize = 16;

/// What a draft costs, in steps of one token: its graph is built anew if the last draft had another length.
const COST: f64 = 0.16;

/// What they may lose more with each step.
const ALLOWANCE_OF_STEP: f64 = 0.01;

/// What was gained counts up to so many steps: a text that repeats no longer soon has no drafts.
const MOST_CREDIT: f64 = 4.0;

/// Makes the drafts of one answer.
pub struct Drafts<'d, 'm> {
    /// What guesses, if it is not the text so far
    model: Option<&'d mut DraftModel<'m>>,
    /// What each token of a draft costs the model that answers, in steps
    cost_of_token: f64,
    /// What may be lost yet, in steps
    credit: f64,
    /// What the guesses for the step to come cost
    guessing: f64,
    done: Drafted,
}

impl<'d, 'm> Drafts<'d, 'm> {
    /// Drafts from n-grams of the text so far, whose tokens cost so many steps each. Before one has been right, a draft of one token may be lost.
    pub fn by_ngrams(cost_of_token: f64) -> Drafts<'d, 'm> {
        Drafts { model: None, cost_of_token, credit: COST + cost_of_token, guessing: 0.0, done: Drafted::default() }
    }

    /// Drafts by a model. As somebody chose it, it may lose some steps before it has been right.
    pub fn by_model(model: &'d mut DraftModel<'m>, cost_of_token: f64) -> Drafts<'d, 'm> {
        Drafts { model: Some(model), credit: MOST_CREDIT, ..Drafts::by_ngrams(cost_of_token) }
    }

    /// Whether a model computes the next one.
    pub fn is_next_computed(&self) -> bool {
        self.model.is_some() && self.affordable() > 0
    }

    /// Tokens that the next draft can have, at most.
    fn affordable(&self) -> usize {
        // A little more, so that rounding takes no token away.
        ((self.credit - COST) / self.cost_of_guess() + 1e-9).max(0.0) as usize
    }

    /// What a token of a draft costs, guessing it and checking it.
    fn cost_of_guess(&self) -> f64 {
        self.cost_of_token + self.model.as_ref().map_or(0.0, |m| m.cost())
    }

    /// A draft of at most `most` tokens after `tokens` and then `last`; empty if there is nothing to go by, or if drafts lost too much lately.
    /// The errors are those of a model that drafts.
    pub fn propose(&mut self, tokens: &[Token], last: Token, most: usize) -> Result<Vec<Token>> {
        let (most, cost) = (most.min(self.affordable()), self.cost_of_guess());
        match &mut self.model {
            _ if most == 0 => Ok(Vec::new()),
            None => Ok(followed(tokens, last, most)),
            Some(model) => {
                // A token that is right with a chance below its cost would lose more than it gains.
                let guess = model.guess(tokens, last, most, cost)?;
                self.guessing = guess.n_steps as f64 * model.cost();
                Ok(guess.tokens)
            }
        }
    }

    /// Hears that a step ran, with so many tokens of a draft, and how many of these the sampler drew.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        self.done.steps += 1;
        self.done.drafted += drafted;
        self.done.accepted += accepted;
        let checking = if drafted == 0 { 0.0 } else { COST + self.cost_of_token * drafted as f64 };
        let cost = checking + std::mem::take(&mut self.guessing);
        self.credit = (self.credit + ALLOWANCE_OF_STEP + accepted as f64 - cost).min(MOST_CREDIT);
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

#[cfg(test)]
mod tests {
    use super::*;

    const COST_OF_TOKEN: f64 = 0.25;

    #[test]
    fn what_followed_the_longest_match_is_guessed() {
        let text = [1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 9, 1, 2, 3];
        assert_eq!(followed(&text, 4, 3), [50, 9, 2], "four tokens rather than three");
        assert_eq!(followed(&[0, 2, 3, 4, 5, 0, 2, 3, 4, 6, 0, 2, 3], 4, 2), [6, 0], "the latest of equals");
        assert_eq!(followed(&[1, 2, 7, 2], 3, 4), [0; 0]);
        assert_eq!(followed(&[9, 2, 3, 4, 8, 2, 3], 4, 4), [0; 0], "three tokens are too few");
        assert_eq!(followed(&[], 1, 4), [0; 0]);
    }

    #[test]
    fn what_runs_into_the_end_is_repeated() {
        assert_eq!(followed(&[1, 2, 1, 2, 1], 2, 5), [1, 2, 1, 2, 1]);
        assert_eq!(followed(&[5; 30], 5, 4), [5; 4]);
    }

    /// Steps of an answer of `n` tokens, and what they cost, if of each draft so many are right.
    fn cost(drafts: &mut Drafts, n: usize, right: impl Fn(usize) -> usize) -> f64 {
        let text = [7; 40];
        let (mut written, mut cost) = (0, 0.0);
        while written < n {
            let drafted = drafts.propose(&text, 7, 7).unwrap().len();
            let accepted = right(drafted);
            drafts.learn(drafted, accepted);
            written += 1 + accepted;
            cost += 1.0 + if drafted == 0 { 0.0 } else { COST + COST_OF_TOKEN * drafted as f64 };
        }
        cost
    }

    #[test]
    fn wrong_drafts_cost_next_to_nothing() {
        for n in [41, 100, 1000] {
            let cost = cost(&mut Drafts::by_ngrams(COST_OF_TOKEN), n, |_| 0);
            assert!(cost <= 1.02 * n as f64 + 1e-6, "{cost} for {n}");
        }
        // After a part that was repeated, what was gained there is not lost again.
        let mut drafts = Drafts::by_ngrams(COST_OF_TOKEN);
        let gained = 40.0 - cost(&mut drafts, 40, |n| n);
        let lost = cost(&mut drafts, 1000, |_| 0) - 1000.0;
        assert!(gained > 20.0 && lost <= MOST_CREDIT + 10.0 + 1e-6, "{gained} and {lost}");
    }

    #[test]
    fn right_drafts_grow_and_wrong_ones_shrink() {
        let mut drafts = Drafts::by_ngrams(COST_OF_TOKEN);
        let length = |drafts: &mut Drafts| drafts.propose(&[7; 40], 7, 7).unwrap().len();
        assert_eq!(length(&mut drafts), 1);
        drafts.learn(1, 1);
        assert_eq!(length(&mut drafts), 3);
        drafts.learn(3, 3);
        assert_eq!(length(&mut drafts), 7);
        drafts.learn(7, 0);
        assert_eq!(length(&mut drafts), 4);
        drafts.learn(4, 0);
        assert_eq!(length(&mut drafts), 0);
        // Then one token is tried now and then.
        let waited = (0..).find(|_| {
            drafts.learn(0, 0);
            length(&mut drafts) > 0
        });
        assert!((1..60).contains(&waited.unwrap()));
        assert_eq!(length(&mut drafts), 1);
        let done = drafts.done();
        assert_eq!((done.drafted, done.accepted), (15, 4));
    }
}
