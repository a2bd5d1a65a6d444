//! A small model that guesses what a large one with the same vocabulary will say (speculative decoding, arXiv 2211.17192).

use crate::engine::{Session, normaliser};
use crate::error::Result;
use crate::tokenizer::Token;

/// A model that drafts, and its own memory of the text.
pub struct DraftModel<'m> {
    session: Session<'m>,
    n_vocab: usize,
    cost: f64,
}

/// Tokens that may come next.
pub struct Guess {
    pub tokens: Vec<Token>,
    /// Steps of the small model that they took
    pub n_steps: usize,
}

impl<'m> DraftModel<'m> {
    /// Both models have the first `n_vocab` tokens. A step of the small one takes `cost` steps of the large one. The session has as much
    /// context as the large model's.
    pub fn new(session: Session<'m>, n_vocab: usize, cost: f64) -> DraftModel<'m> {
        DraftModel { session, n_vocab, cost }
    }

    /// What a step costs, in steps of the large model.
    pub fn cost(&self) -> f64 {
        self.cost
    }

    /// Context in tokens.
    pub fn n_ctx(&self) -> usize {
        self.session.n_ctx()
    }

    /// Whether it knows all of these tokens.
    pub fn knows(&self, tokens: &[Token]) -> bool {
        tokens.iter().all(|&token| (token as usize) < self.n_vocab)
    }

    /// Its memory of the text.
    pub fn session_mut(&mut self) -> &mut Session<'m> {
        &mut self.session
    }

    /// The most likely tokens after `tokens` and then `last`, at most `most`, and only while all of them so far are right with at least this
    /// `chance` by the small model's own account. What the text has in common with the last one is not read again.
    /// [`crate::error::Kind::Interrupted`] if the session is told so.
    pub fn guess(&mut self, tokens: &[Token], last: Token, most: usize, chance: f64) -> Result<Guess> {
        let mut guess = Guess { tokens: Vec::new(), n_steps: 0 };
        let text = [tokens, &[last]].concat();
        if !self.knows(&text) {
            return Ok(guess);
        }
        self.session.sync(&text, &mut |_, _| {})?;
        let mut all_right = 1.0;
        loop {
            guess.n_steps += 1;
            let (token, ln_sum) = normaliser(self.session.logits());
            all_right *= (-ln_sum).exp();
            if all_right < chance || token >= self.n_vocab {
                break;
            }
            guess.tokens.push(token as Token);
            if guess.tokens.len() == most {
                break;
            }
            self.session.decode(token as Token)?;
        }
        // The large model has the processors now.
        self.session.pause();
        Ok(guess)
    }
}
