//! Messages on stderr: notes by verbosity, progress, and the closing line of statistics.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::options::LogOptions;
use crate::error::{Error, Kind, Result, escape};

/// Where messages go.
#[derive(Debug)]
pub struct Log {
    verbosity: u8,
    simple: bool,
    file: Option<RefCell<File>>,
}

impl Log {
    /// Opens the copy of messages, if one is wanted. `simple` is for terminals without cursor control: no progress bars.
    pub fn new(options: &LogOptions, simple: bool) -> Result<Log> {
        let file = match &options.file {
            None => None,
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let file = file.map_err(|e| Error::new(Kind::CannotCreate, format!("{e}")).in_file(path))?;
                Some(RefCell::new(file))
            }
        };
        Ok(Log { verbosity: options.verbosity, simple, file })
    }

    /// A note or a statistic (verbosity 3, the default).
    pub fn note(&self, message: &str) {
        self.write(3, message);
    }

    /// Something that the user may want to change (verbosity 2).
    pub fn warn(&self, message: &str) {
        self.write(2, &format!("warning: {message}"));
    }

    /// Something that failed while the program goes on (verbosity 1).
    pub fn error(&self, message: &str) {
        self.write(1, &format!("error: {message}"));
    }

    /// The line of numbers after an answer of a chat (verbosity 3), `dim` if it can be.
    pub fn status(&self, line: &str, dim: bool) {
        self.line(3, line, dim);
    }

    /// A detail (verbosity 4, `--verbose`).
    pub fn trace(&self, message: &str) {
        self.write(4, message);
    }

    fn write(&self, level: u8, message: &str) {
        self.line(level, &format!("pp-run: {message}"), false);
    }

    fn line(&self, level: u8, line: &str, dim: bool) {
        let line = escape(line);
        if let Some(file) = &self.file {
            // A full disk must not end an answer; the message is on stderr too.
            let _ = file.borrow_mut().write_all(format!("{line}\n").as_bytes());
        }
        if level > self.verbosity {
            return;
        }
        let terminal = stderr().is_terminal();
        let wrapped = if terminal && !self.simple { fill(&line, columns(stderr()), "  ") } else { line };
        let (on, off) = if terminal && dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let _ = stderr().write_all(format!("{on}{wrapped}{off}\n").as_bytes());
    }

    /// A bar for `what` with `length` steps, which are counted if they have a `unit`; nothing is drawn when stderr is no terminal or notes are off.
    pub fn progress(&self, what: &str, length: u64, unit: &'static str) -> ProgressBar {
        let target = if self.verbosity >= 3 && !self.simple && stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(match unit {
            "" => "{msg} {wide_bar} {percent:>3}% ETA {eta}",
            _ => "{msg} {wide_bar} {percent:>3}% {human_pos}/{human_len} {prefix} ETA {eta}",
        });
        let bar = ProgressBar::with_draw_target(Some(length), target).with_style(style.expect("the template is valid"));
        bar.set_message(what.to_owned());
        bar.set_prefix(unit);
        bar
    }
}

/// Columns of the terminal that a stream goes to, of now; `None` if it is none, or does not say.
#[cfg(unix)]
pub fn columns(stream: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(usize::from(size.ws_col)).filter(|&n| n > 0)
}

/// Columns of the console, of now.
#[cfg(not(unix))]
pub fn columns<T>(_: T) -> Option<usize> {
    crossterm::terminal::size().ok().map(|(columns, _)| usize::from(columns)).filter(|&n| n > 0)
}

/// A line broken between words at this width, `indent` before what goes on.
pub fn fill(line: &str, width: Option<usize>, indent: &str) -> String {
    // In fewer columns there is no room for words.
    match width.filter(|&n| n >= 20) {
        Some(width) => textwrap::fill(line, textwrap::Options::new(width).subsequent_indent(indent)),
        None => line.to_owned(),
    }
}

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
    /// Time from the first token to the last.
    pub generation_time: Duration,
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
    /// The same in a few words.
    pub prune_in_short: Option<String>,
    /// Why the answer ended.
    pub stop_reason: &'static str,
}

/// Tokens per second; 0 for no time.
pub fn per_second(n: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

/// The most memory that this process has had at once, in bytes: its maximum resident set, mapped files included. `None` where
/// the system does not say.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok())?;
    Some(kib * 1024)
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

    /// The line after an answer of a chat.
    pub fn short_line(&self) -> String {
        let cached = match self.cached_tokens {
            0 => String::new(),
            n => format!(" ({n} cached)"),
        };
        let first = self.first_token_time.map_or_else(String::new, |t| format!(", first {:.2} s", t.as_secs_f64()));
        let prune = self.prune_in_short.as_ref().map_or_else(String::new, |p| format!(", {p}"));
        format!(
            "read {} at {:.0} tok/s{cached}, wrote {} at {:.1} tok/s{first}, context {}/{} ({:.0}%){prune}",
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

    /// The closing line; peak memory is that of now.
    pub fn line(&self) -> String {
        let cached = match self.cached_tokens {
            0 => String::new(),
            n => format!(" ({n} cached)"),
        };
        let prune = self.prune.as_ref().map_or_else(String::new, |p| format!("{p} | "));
        let memory = peak_memory()
            .map_or_else(String::new, |bytes| format!("peak memory {:.1} MiB | ", bytes as f64 / f64::from(1 << 20)));
        let first = self.first_token_time.map_or_else(|| "none".to_owned(), |t| format!("{:.3} s", t.as_secs_f64()));
        format!(
            "prompt {} tokens{cached}, {:.1} tok/s{} | generated {} tokens, {:.1} tok/s | first token {first} | context {}/{} | \
             {memory}{prune}seed {} | logits {:016x} | {}",
            self.prompt_tokens,
            self.prompt_speed(),
            self.split(),
            self.generated_tokens,
            self.generation_speed(),
            self.context_used,
            self.context_size,
            self.seed,
            self.logits_hash,
            self.stop_reason
        )
    }
}

/// XXH3 (64 bits) of the logits' bits in little-endian order: equal for runs that computed the same.
pub fn logits_hash(logits: &[f32]) -> u64 {
    let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
