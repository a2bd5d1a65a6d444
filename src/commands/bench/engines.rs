//! What is timed, and the engines that it is timed on: ours, and llama.cpp's own.

use std::time::{Duration, Instant};

use ggml::llama::{Context, DecodeError};

use crate::engine::{Report, Timeline, are_usable};
use crate::error::{Error, Kind, Result};
use crate::tokenizer::Token;

/// What is timed: a prompt, then generated tokens, after `n_depth` tokens that are not timed.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
    /// The prompt's tokens are a step: logits are computed after each of them
    pub is_step: bool,
}

impl Test {
    /// llama-bench's name.
    pub fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
            (p, 0) if self.is_step => format!("step{p}"),
            (p, 0) => format!("pp{p}"),
            (0, g) => format!("tg{g}"),
            (p, g) => format!("pp{p}+tg{g}"),
        };
        if self.n_depth > 0 {
            name.push_str(&format!(" @ d{}", self.n_depth));
        }
        name
    }

    pub fn n_tokens(&self) -> usize {
        self.n_prompt + self.n_gen
    }
}

/// Our engine, pruned or not, or llama.cpp's as the baseline.
pub enum Engine<'m> {
    Ours { session: Box<dyn Timeline<'m> + 'm> },
    Llama { context: Context<'m>, n_batch: usize, repack: Option<bool> },
}

impl Engine<'_> {
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Ours { .. } => "pp-run",
            Engine::Llama { .. } => "llama.cpp",
        }
    }

    /// Whether the baseline runs on rearranged weights, if that is a difference.
    pub fn repack(&self) -> Option<bool> {
        match self {
            Engine::Ours { .. } => None,
            Engine::Llama { repack, .. } => *repack,
        }
    }

    /// The pruning ratio; 0 = nothing is left out.
    pub fn ratio(&self) -> f64 {
        match self {
            Engine::Ours { session } => session.own().and_then(|s| s.prune_options()).map_or(0.0, |o| o.ratio),
            Engine::Llama { .. } => 0.0,
        }
    }

    /// What pruning did in the last test.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Engine::Ours { session } => session.prune_report(),
            Engine::Llama { .. } => None,
        }
    }

    fn clear(&mut self) {
        match self {
            Engine::Ours { session } => session.clear(),
            Engine::Llama { context, .. } => context.clear(),
        }
    }

    /// Processes `tokens` from position `start` on.
    fn prompt(&mut self, tokens: &[Token], start: usize) -> Result<()> {
        match self {
            Engine::Ours { session } => {
                let mut all = session.tokens().to_vec();
                all.extend_from_slice(tokens);
                session.sync(&all, &mut |_, _| {}).map(drop)
            }
            Engine::Llama { context, n_batch, .. } => {
                for (i, piece) in tokens.chunks(*n_batch).enumerate() {
                    decode(context, piece, start + i * *n_batch, |j| j + 1 == piece.len())?;
                }
                Ok(())
            }
        }
    }

    fn decode(&mut self, token: Token, position: usize) -> Result<()> {
        match self {
            Engine::Ours { session } => session.decode(token),
            Engine::Llama { .. } => self.prompt(&[token], position),
        }
    }

    /// Lets the engine's threads sleep while another engine runs.
    pub fn pause(&self) {
        match self {
            Engine::Ours { session } => session.pause(),
            Engine::Llama { context, .. } => context.pause(),
        }
    }

    /// Runs a test on the given tokens (depth, prompt and generated ones) and times it.
    pub fn time(&mut self, test: &Test, tokens: &[Token]) -> Result<Duration> {
        self.clear();
        let (depth, rest) = tokens.split_at(test.n_depth);
        let (prompt, generated) = rest.split_at(test.n_prompt);
        if !depth.is_empty() {
            self.prompt(depth, 0)?;
        }
        if let Engine::Ours { session } = self {
            session.expect(generated.len());
        }
        let start = Instant::now();
        if !prompt.is_empty() {
            self.prompt(prompt, test.n_depth)?;
        }
        for (i, &token) in generated.iter().enumerate() {
            self.decode(token, test.n_depth + test.n_prompt + i)?;
        }
        let time = start.elapsed();
        self.pause();
        if let Engine::Llama { context, n_batch, .. } = self {
            // Ours has looked at its own.
            let last = if generated.is_empty() { (prompt.len() - 1) % *n_batch } else { 0 };
            require_usable(context.logits(last).unwrap_or_default())?;
        }
        Ok(time)
    }

    /// Makes the cache hold `depth`, which what it holds begins with, if that is longer.
    pub fn go_to(&mut self, depth: &[Token]) -> Result<()> {
        let n = depth.len();
        match self {
            Engine::Ours { session } => {
                if let Some(own) = session.own_mut().filter(|own| own.n_past() >= n) {
                    own.rewind(n);
                } else if n == 0 {
                    session.clear();
                } else {
                    session.sync(depth, &mut |_, _| {})?;
                }
            }
            Engine::Llama { context, .. } => {
                let position = i32::try_from(n).expect("a context's length");
                if context.n_past() < n || !context.forget_from(position) {
                    self.clear();
                    self.prompt(depth, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Computes some tokens together, from position `start` on; `logits` becomes those after each, `[n_vocab, tokens.len()]`.
    pub fn step(&mut self, tokens: &[Token], start: usize, logits: &mut Vec<f32>) -> Result<()> {
        match self {
            Engine::Ours { session } => session.decode_together(tokens, logits),
            Engine::Llama { context, .. } => {
                decode(context, tokens, start, |_| true)?;
                logits.clear();
                (0..tokens.len()).for_each(|i| logits.extend_from_slice(context.logits(i).unwrap_or_default()));
                Ok(())
            }
        }
    }
}

/// Computes one batch of libllama's, whose tokens begin at position `first`.
fn decode(context: &mut Context, tokens: &[Token], first: usize, wanted: impl Fn(usize) -> bool) -> Result<()> {
    let batch: Vec<_> = tokens.iter().enumerate().map(|(i, &t)| (t, (first + i) as i32, 0, wanted(i))).collect();
    context.compute(&batch).map_err(|e| match e {
        DecodeError::Interrupted => Error::new(Kind::Interrupted, "interrupted"),
        DecodeError::Failed(_) => Error::failed("llama.cpp failed to compute"),
    })
}

/// Refuses what no token can be drawn from: a time of it says nothing.
pub fn require_usable(logits: &[f32]) -> Result<()> {
    match are_usable(logits) {
        true => Ok(()),
        false => Err(Error::malformed(
            "llama.cpp computes NaN or infinity: the file is damaged, or its numbers are too large",
        )),
    }
}
