//! One text that grows, on whichever engine runs the model.

use std::path::Path;

use super::prompt_cache::Found;
use super::report::Report;
use super::session::{PromptTimes, Session};
use super::threads::Fewer;
use crate::error::Result;
use crate::tokenizer::Token;

/// Tokens that a model has read, what it remembers of them, and the logits after the last one.
pub trait Timeline<'m> {
    /// The same on our own graphs, for what only they can do: pruning and traces.
    fn own(&self) -> Option<&Session<'m>>;

    /// The same, to be changed.
    fn own_mut(&mut self) -> Option<&mut Session<'m>>;

    /// Makes the tokens exactly `prompt`: keeps the common prefix as far as the model's memory allows, and processes the rest, at least the
    /// last token, so that the logits are its. `progress` is told after each micro-batch how many tokens are done and of how many. Returns
    /// the number processed. [`crate::error::Kind::Malformed`] if the prompt is empty or longer than the context;
    /// [`crate::error::Kind::Interrupted`] leaves what was done.
    fn sync(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize, usize)) -> Result<usize>;

    /// Appends one token and computes its logits. [`crate::error::Kind::Malformed`] if the context is full.
    fn decode(&mut self, token: Token) -> Result<()>;

    /// Appends some tokens, no more than a micro-batch has, and computes them together, on all weights. `logits` becomes those after each of
    /// them, `[n_vocab, tokens.len()]`. [`crate::error::Kind::Malformed`] if the context is full.
    fn decode_together(&mut self, tokens: &[Token], logits: &mut Vec<f32>) -> Result<()>;

    /// Forgets all tokens.
    fn clear(&mut self);

    /// At most so many tokens will be decoded from now on.
    fn expect(&mut self, n: usize);

    /// The tokens.
    fn tokens(&self) -> &[Token];

    /// Logits `[n_vocab]` after the last token; empty before the first.
    fn logits(&self) -> &[f32];

    /// Context in tokens.
    fn n_ctx(&self) -> usize;

    /// Tokens of a prompt that are computed at once, at most.
    fn n_ubatch(&self) -> usize;

    /// Tells from another thread which share of the micro-batch that runs is done.
    fn batch_progress(&self) -> Box<dyn Fn() -> f64 + Send>;

    /// Lets the worker threads sleep until the next computation.
    fn pause(&self);

    /// Number of tokens.
    fn n_past(&self) -> usize {
        self.tokens().len()
    }

    /// What the last prompt took beside its products and its attention.
    fn prompt_times(&self) -> PromptTimes {
        self.own().map_or_else(PromptTimes::default, |s| s.prompt_times())
    }

    /// What pruning did lately.
    fn prune_report(&self) -> Option<&Report>;

    /// The threads that were given up since this was last asked, as others used the processors.
    fn take_fewer_threads(&mut self) -> Option<Fewer> {
        self.own_mut().and_then(Session::take_fewer_threads)
    }

    /// How many of the first `n` tokens a file can hold: all, unless the model's memory cannot go back to the last of them.
    fn saveable(&self, n: usize) -> usize;

    /// Writes the first `n_tokens` tokens, as many as are [saveable](Timeline::saveable), and what the model remembers of them to a file
    /// ([`super::prompt_cache`]); what comes after them may be forgotten then. [`crate::error::Kind::Malformed`] if the file that is there
    /// is something else, which is then left alone; [`crate::error::Kind::CannotCreate`] and [`crate::error::Kind::Io`] leave an old one
    /// as it was.
    fn save_state(&mut self, path: &Path, n_tokens: usize) -> Result<()>;

    /// Makes the model remember what [`Timeline::save_state`] wrote, and nothing else. There are no logits before [`Timeline::sync`] or
    /// [`Timeline::decode`]. A file that is of no use here is none, and what was there before may be forgotten; one that is no prompt
    /// cache is [`crate::error::Kind::Malformed`], what is no file at all [`crate::error::Kind::CannotCreate`].
    fn restore_state(&mut self, path: &Path) -> Result<Found>;
}

impl<'m> Timeline<'m> for Session<'m> {
    fn own(&self) -> Option<&Session<'m>> {
        Some(self)
    }

    fn own_mut(&mut self) -> Option<&mut Session<'m>> {
        Some(self)
    }

    fn sync(&mut self, prompt: &[Token], progress: &mut dyn FnMut(usize, usize)) -> Result<usize> {
        Session::sync(self, prompt, progress)
    }

    fn decode(&mut self, token: Token) -> Result<()> {
        Session::decode(self, token)
    }

    fn decode_together(&mut self, tokens: &[Token], logits: &mut Vec<f32>) -> Result<()> {
        Session::decode_together(self, tokens, logits)
    }

    fn clear(&mut self) {
        self.rewind(0);
    }

    fn expect(&mut self, n: usize) {
        Session::expect(self, n);
    }

    fn tokens(&self) -> &[Token] {
        Session::tokens(self)
    }

    fn logits(&self) -> &[f32] {
        Session::logits(self)
    }

    fn n_ctx(&self) -> usize {
        Session::n_ctx(self)
    }

    fn n_ubatch(&self) -> usize {
        Session::n_ubatch(self)
    }

    fn batch_progress(&self) -> Box<dyn Fn() -> f64 + Send> {
        Box::new(Session::batch_progress(self))
    }

    fn pause(&self) {
        Session::pause(self);
    }

    fn prune_report(&self) -> Option<&Report> {
        Session::prune_report(self)
    }

    fn saveable(&self, n: usize) -> usize {
        n
    }

    fn save_state(&mut self, path: &Path, n_tokens: usize) -> Result<()> {
        Session::save_state(self, path, n_tokens)
    }

    fn restore_state(&mut self, path: &Path) -> Result<Found> {
        Session::restore_state(self, path)
    }
}
