//! What is timed, and the engines that it is timed on: ours, and llama.cpp's own.

use std::time::{Duration, Instant};

use ggml::llama::Context;

use crate::engine::{Report, Timeline};
use crate::error::{Error, Result};
use crate::tokenizer::Token;

/// What is timed: a prompt, then generated tokens, after `n_depth` tokens that are not timed.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
}

impl Test {
    /// llama-bench's name.
    pub fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
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
    Llama { context: Context<'m>, n_batch: usize },
}

impl Engine<'_> {
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Ours { .. } => "pp-run",
            Engine::Llama { .. } => "llama.cpp",
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
            Engine::Llama { context, n_batch } => {
                for (i, piece) in tokens.chunks(*n_batch).enumerate() {
                    let first = start + i * *n_batch;
                    let batch: Vec<_> = piece
                        .iter()
                        .enumerate()
                        .map(|(j, &t)| (t, (first + j) as i32, 0, j + 1 == piece.len()))
                        .collect();
                    if !context.decode(&batch) {
                        return Err(Error::failed("llama.cpp failed to compute"));
                    }
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
    fn pause(&self) {
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
        Ok(time)
    }
}
