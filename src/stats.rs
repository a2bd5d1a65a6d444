//! Counts and times of an answer, and the lines that say them.

use std::time::Duration;

use crate::system::memory;

/// Counts and times of one answer.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, in the cache already.
    pub cached_tokens: usize,
    /// Of these, processed now: all others, unless the run was interrupted.
    pub processed_tokens: usize,
    /// Time for them.
    pub prompt_time: Duration,
    /// Of this, probes.
    pub probe_time: Duration,
    /// Of this, packing of weights.
    pub pack_time: Duration,
    /// Tokens drawn.
    pub generated_tokens: usize,
    /// Of these, what the model thought before it answered.
    pub thought_tokens: u64,
    /// Time from the first token to the last.
    pub generation_time: Duration,
    /// Time that choosing tokens took: samplers, and the form of the answer.
    pub drawing_time: Duration,
    /// Time from the prompt to the first token; `None` if there is none.
    pub first_token_time: Option<Duration>,
    /// Tokens in the context.
    pub context_used: usize,
    /// Tokens that fit.
    pub context_size: usize,
    /// Seed of the sampler.
    pub seed: u32,
    /// See [`logits_hash`].
    pub logits_hash: u64,
    /// What was pruned, if anything was to be.
    pub prune: Option<String>,
    /// KL divergence that pruned reading is expected to cost, in nats per token, where it was measured for this model.
    pub prune_expected_kl: Option<f64>,
    /// What was pruned in a few words.
    pub prune_in_short: Option<String>,
    /// What became of drafts, if there could be any.
    pub drafted: Option<Drafted>,
    /// That fewer threads computed than may, if so.
    pub threads: Option<String>,
    /// How the file wants answers to be drawn, if this one was drawn so and nothing said it yet.
    pub sampling: Option<String>,
    /// Why the answer ended.
    pub stop_reason: &'static str,
    /// `-n` ended the answer.
    pub is_cut: bool,
}

/// What holds for all answers of a run, in words.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Why there are no drafts, if there are none.
    pub no_drafts: String,
    /// How many threads compute.
    pub threads: String,
    /// Whose kernels multiply what.
    pub kernels: String,
    /// Types and bytes of the KV cache.
    pub cache: String,
}

/// What became of an answer's drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drafted {
    /// Tokens of drafts
    pub drafted: usize,
    /// Of these, drawn by the sampler: each saved a step
    pub accepted: usize,
    /// Steps in which the model computed the answer
    pub steps: usize,
}

/// Tokens per second; 0 for no time.
pub fn per_second(n: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

impl Stats {
    /// Speed of the prompt in tokens per second.
    pub fn prompt_speed(&self) -> f64 {
        per_second(self.processed_tokens, self.prompt_time)
    }

    /// Speed of generation in tokens per second: the first token's time belongs to the prompt.
    pub fn generation_speed(&self) -> f64 {
        per_second(self.generated_tokens.saturating_sub(1), self.generation_time)
    }

    /// How the time of the prompt divides; nothing to say if all of it was products.
    fn split(&self) -> String {
        let share = |t: Duration| 100.0 * t.as_secs_f64() / self.prompt_time.as_secs_f64().max(f64::MIN_POSITIVE);
        let (probe, pack) = (share(self.probe_time), share(self.pack_time));
        match (self.probe_time.is_zero(), self.pack_time.is_zero()) {
            (true, true) => String::new(),
            (true, false) => format!(" (pack {pack:.0}%, compute {:.0}%)", 100.0 - pack),
            _ => format!(" (probe {probe:.0}%, pack {pack:.0}%, compute {:.0}%)", 100.0 - probe - pack),
        }
    }

    /// What drafts saved; nothing to say if there were none.
    fn drafts(&self) -> Option<String> {
        let Drafted { drafted, accepted, steps } = self.drafted.filter(|d| d.drafted > 0)?;
        Some(format!("drafts {accepted} of {drafted} tokens accepted, {steps} steps"))
    }

    /// That `-n` cut the answer, if so.
    pub fn cut(&self) -> Option<String> {
        self.is_cut.then(|| format!("the answer was cut at {} tokens (-n)", self.generated_tokens))
    }

    /// The line after an answer of a chat.
    pub fn short_line(&self) -> String {
        let cached = match self.cached_tokens {
            0 => String::new(),
            n => format!(" ({n} cached)"),
        };
        let first = self.first_token_time.map_or_else(String::new, |t| format!(", first {:.2} s", t.as_secs_f64()));
        let drafts = self.drafts().map_or_else(String::new, |d| format!(", {d}"));
        let prune = self.prune_in_short.as_ref().map_or_else(String::new, |p| format!(", {p}"));
        let threads = self.threads.as_ref().map_or_else(String::new, |t| format!(", {t}"));
        let sampling = self.sampling.as_ref().map_or_else(String::new, |s| format!(", {s}"));
        let cut = self.cut().map_or_else(String::new, |cut| format!(", {cut}"));
        format!(
            "read {} at {:.0} tok/s{cached}, wrote {} at {:.1} tok/s{first}, context {}/{} ({:.0}%){drafts}{prune}{threads}{sampling}{cut}",
            self.processed_tokens,
            self.prompt_speed(),
            self.generated_tokens,
            self.generation_speed(),
            self.context_used,
            self.context_size,
            100.0 * self.context_share()
        )
    }

    /// How full the context is.
    pub fn context_share(&self) -> f64 {
        self.context_used as f64 / self.context_size.max(1) as f64
    }

    /// How the answer came about, part by part, as names and what there is to say of them. `facts` are those that numbers do not tell.
    pub fn parts(&self, facts: &Facts) -> Vec<(&'static str, String)> {
        let seconds = |t: Duration| format!("{:.2} s", t.as_secs_f64());
        let read = match self.processed_tokens {
            0 => "nothing was left to read".to_owned(),
            n => {
                format!("{n} read in {} at {:.0} tok/s{}", seconds(self.prompt_time), self.prompt_speed(), self.split())
            }
        };
        let thought = match self.thought_tokens {
            0 => String::new(),
            n => format!(", {n} of them thoughts"),
        };
        let drawing = 100.0 * self.drawing_time.as_secs_f64() / self.generation_time.as_secs_f64().max(1e-9);
        let drafts = match (self.drafted, self.drafts()) {
            (None, _) => facts.no_drafts.clone(),
            (_, Some(drafts)) => drafts.trim_start_matches("drafts ").to_owned(),
            (_, None) => "none were tried: nothing was likely enough".to_owned(),
        };
        vec![
            ("prompt", format!("{} tokens: {} from the cache, {read}", self.prompt_tokens, self.cached_tokens)),
            ("pruning", self.prune.clone().unwrap_or_else(|| "none: everything was read with all weights".to_owned())),
            (
                "answer",
                format!(
                    "{} tokens{thought} in {} at {:.1} tok/s; choosing them took {:.0}% of that; ended by {}",
                    self.generated_tokens,
                    seconds(self.generation_time),
                    self.generation_speed(),
                    drawing.min(100.0),
                    self.stop_reason.replace('_', " ")
                ),
            ),
            ("drafts", drafts),
            ("threads", self.threads.as_ref().map_or(&facts.threads, |t| t).trim_start_matches("threads ").to_owned()),
            ("kernels", facts.kernels.clone()),
            ("cache", format!("{} of {} tokens, {}", self.context_used, self.context_size, facts.cache)),
            ("seed", self.seed.to_string()),
        ]
    }

    /// The closing line; peak memory is that of now.
    pub fn line(&self) -> String {
        let cached = match self.cached_tokens {
            0 => String::new(),
            n => format!(" ({n} cached)"),
        };
        let drafts = self.drafts().map_or_else(String::new, |d| format!("{d} | "));
        let prune = self.prune.as_ref().map_or_else(String::new, |p| format!("{p} | "));
        let threads = self.threads.as_ref().map_or_else(String::new, |t| format!("{t} | "));
        let sampling = self.sampling.as_ref().map_or_else(String::new, |s| format!("{s} | "));
        let memory = memory::peak()
            .map_or_else(String::new, |bytes| format!("peak memory {:.1} MiB | ", bytes as f64 / f64::from(1 << 20)));
        let first = self.first_token_time.map_or_else(|| "none".to_owned(), |t| format!("{:.3} s", t.as_secs_f64()));
        format!(
            "prompt {} tokens{cached}, {:.1} tok/s{} | generated {} tokens, {:.1} tok/s | first token {first} | context {}/{} | \
             {memory}{drafts}{prune}{threads}{sampling}seed {} | logits {:016x} | {}{}",
            self.prompt_tokens,
            self.prompt_speed(),
            self.split(),
            self.generated_tokens,
            self.generation_speed(),
            self.context_used,
            self.context_size,
            self.seed,
            self.logits_hash,
            self.stop_reason,
            self.cut().map_or_else(String::new, |cut| format!(": {cut}"))
        )
    }
}

/// XXH3 (64 bits) of the logits' bits in little-endian order: equal for runs that computed the same.
pub fn logits_hash(logits: &[f32]) -> u64 {
    let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
