//! The command line as clap sees it, after [`super::normalise`].

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

/// Runs a GGUF language model in the terminal, offline.
///
/// With -p (or -f, or text on stdin) pp-run answers and exits; on a terminal without a prompt it chats. pp-run FILE.gguf
/// is short for pp-run -m FILE.gguf, and pp-run alone lists the models that it finds. llama.cpp's flags keep their names
/// and meanings, single-dash ones such as -ngl or -ctk included.
#[derive(Debug, Parser)]
#[command(name = "pp-run", bin_name = "pp-run", version, max_term_width = 110)]
#[command(args_override_self = true, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Sub>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What else pp-run does.
#[derive(Debug, Subcommand)]
#[command(args_override_self = true)]
pub enum Sub {
    /// What is in a GGUF file
    Show(ShowArgs),
    /// Tokens of a text
    Tokenize(TokenizeArgs),
    /// Perplexity of a model on a text, as llama-perplexity computes it
    #[command(alias = "ppl")]
    Perplexity(PerplexityArgs),
    /// Statistics of a model for pruning, written next to it
    Calibrate(CalibrateArgs),
    /// Speed of prompt processing and generation, as llama-bench measures it
    Bench(BenchArgs),
    /// Saved chats: lists them; shows one as text, or deletes
    Chats(ChatsArgs),
    /// What pp-run sees of this machine and makes of it, and what would make it faster
    Doctor,
    /// Shell completions on stdout
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The manual page (roff) on stdout
    Man,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Layers on the GPU: a number, 'all' or 'auto' [-ngl]
    #[arg(long, alias = "gpu-layers", value_name = "N", allow_hyphen_values = true)]
    pub n_gpu_layers: Option<String>,
    /// How the file is read: auto, mmap, none, mlock, mmap+mlock [-lm]
    #[arg(long, value_name = "MODE")]
    pub load_mode: Option<String>,
    /// Copy the weights into memory instead of using the mapped file in place
    #[arg(long)]
    pub no_mmap: bool,
    #[arg(long, hide = true)]
    pub mmap: bool,
    #[arg(long, hide = true, alias = "dio")]
    pub direct_io: bool,
    /// Keep the weights from being swapped out
    #[arg(long)]
    pub mlock: bool,
    /// Look for invalid values in the weights first
    #[arg(long)]
    pub check_tensors: bool,
    /// Replace metadata: KEY=TYPE:VALUE with int, float, bool or str
    #[arg(long, value_name = "K=T:V", action = ArgAction::Append)]
    pub override_kv: Vec<String>,
    /// Whose kernels multiply weights on the CPU: ggml (bit-equal to llama.cpp), native (our own, int8), auto (those that
    /// are measured faster for this model here)
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub kernels: String,
    /// Weights in the layout of our own kernels' prompts: batch (made for each batch, takes no memory), resident (made at the
    /// load, 9 bits for each weight)
    #[arg(long, value_name = "HOW", default_value = "batch")]
    pub pack: String,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    /// Context in tokens; 0 = as trained [default: as trained, less if memory is short]
    #[arg(long, short = 'c', value_name = "N", allow_hyphen_values = true)]
    pub ctx_size: Option<i64>,
    /// Logical batch
    #[arg(long, short = 'b', value_name = "N", default_value_t = 2048, allow_hyphen_values = true)]
    pub batch_size: i64,
    /// Micro-batch: tokens of a prompt computed at once [-ub]
    #[arg(long, value_name = "N", default_value_t = 512, allow_hyphen_values = true)]
    pub ubatch_size: i64,
    /// Threads for generation; -1 = one per core
    #[arg(long, short = 't', value_name = "N", allow_hyphen_values = true)]
    pub threads: Option<String>,
    /// Threads for prompts [-tb] [default: as -t]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub threads_batch: Option<i64>,
    /// Type of cached keys: f16, f32, q8_0 [-ctk] [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub cache_type_k: Option<String>,
    /// Type of cached values: f16, f32, q8_0 [-ctv] [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub cache_type_v: Option<String>,
    /// Flash attention: on, off, auto [-fa]
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "on", default_value = "auto", allow_negative_numbers = true)]
    pub flash_attn: String,
    #[command(flatten)]
    pub rope: RopeArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context")]
pub struct RopeArgs {
    /// Base of the RoPE frequencies
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub rope_freq_base: Option<f32>,
    /// Factor on RoPE positions
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub rope_freq_scale: Option<f32>,
    /// Divisor of RoPE positions: 1 / --rope-freq-scale
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub rope_scale: Option<f32>,
    /// RoPE scaling: none, linear, yarn
    #[arg(long, value_name = "KIND")]
    pub rope_scaling: Option<String>,
    /// YaRN: context of the training
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub yarn_orig_ctx: Option<i64>,
    /// YaRN: share of extrapolation
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_ext_factor: Option<f32>,
    /// YaRN: factor on the magnitude
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_attn_factor: Option<f32>,
    /// YaRN: low end of the correction range
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_beta_slow: Option<f32>,
    /// YaRN: high end of the correction range
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub yarn_beta_fast: Option<f32>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Messages (stderr)")]
pub struct LogArgs {
    /// All messages
    #[arg(long, short = 'v', alias = "log-verbose")]
    pub verbose: bool,
    /// 0 output, 1 errors, 2 warnings, 3 notes and statistics, 4 trace, 5 debug [-lv]
    #[arg(long, alias = "log-verbosity", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub verbosity: Option<u8>,
    /// Errors only
    #[arg(long, short = 'q', alias = "log-disable")]
    pub quiet: bool,
    /// Copy messages to a file (appended)
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the draw; -1 = random
    #[arg(long, short = 's', value_name = "N", allow_hyphen_values = true)]
    pub seed: Option<i64>,
    /// Temperature; 0 = always the most likely token
    #[arg(long, alias = "temperature", value_name = "X", default_value_t = 0.8, allow_hyphen_values = true)]
    pub temp: f32,
    /// Draw from the K most likely tokens; 0 = all
    #[arg(long, value_name = "K", default_value_t = 40, allow_hyphen_values = true)]
    pub top_k: i32,
    /// Draw from the tokens that make up this probability; 1 = all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_hyphen_values = true)]
    pub top_p: f32,
    /// Least probability, relative to the best; 0 = off
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_hyphen_values = true)]
    pub min_p: f32,
    /// Penalty on tokens that occurred; 1 = off
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_hyphen_values = true)]
    pub repeat_penalty: f32,
    /// Tokens that penalties look back at; -1 = the context
    #[arg(long, value_name = "N", default_value_t = 64, allow_hyphen_values = true)]
    pub repeat_last_n: i32,
    /// Penalty on presence; 0 = off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub presence_penalty: f32,
    /// Penalty on frequency; 0 = off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub frequency_penalty: f32,
    /// Never end an answer before -n or the context does
    #[arg(long)]
    pub ignore_eos: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Probe Pruning")]
pub struct PruneArgs {
    /// Share of heads and MLP channels to leave out, 0 to 0.8: each batch runs on those that matter for it
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    pub prune: Option<f64>,
    #[command(flatten)]
    pub how: PruneHowArgs,
    /// Write what each block of each batch kept, as JSON
    #[arg(long, value_name = "FILE")]
    pub prune_dump: Option<PathBuf>,
    /// Keep what a dump says
    #[arg(long, value_name = "FILE")]
    pub prune_replay: Option<PathBuf>,
}

/// What holds for any ratio.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Probe Pruning")]
pub struct PruneHowArgs {
    /// The paper's own configuration, for batches of many samples; the other flags change it
    #[arg(long)]
    pub prune_paper: bool,
    /// What decides: pp, full-batch, static, wanda-sp, flap, flap-as-coded [default: pp]
    #[arg(long, value_name = "METHOD")]
    pub prune_method: Option<String>,
    /// Tokens and samples of the probe: even (at even distances), residual (of the largest norm) [default: even]
    #[arg(long, value_name = "PICKER")]
    pub prune_picker: Option<String>,
    /// Share of the tokens in the probe [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true)]
    pub prune_tokens: Option<f64>,
    /// Share of the samples in the probe [default: 1]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true)]
    pub prune_samples: Option<f64>,
    /// What a channel is worth: normalised, ppsp (the paper's) [default: normalised]
    #[arg(long, value_name = "METRIC")]
    pub prune_metric: Option<String>,
    /// First layers that stay whole [default: 3]
    #[arg(long, value_name = "N")]
    pub prune_skip: Option<usize>,
    /// Attention stays whole
    #[arg(long)]
    pub prune_mlp_only: bool,
    /// What the probe is fused with: none, channel, position (both need pp-run calibrate) [default: none]
    #[arg(long, value_name = "KIND")]
    pub prune_history: Option<String>,
    /// Share of the old in the history after each batch; 1 = it never changes [default: 0.99]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub prune_momentum: Option<f64>,
    /// The number of kept channels is a multiple of this [default: 64]
    #[arg(long, value_name = "N")]
    pub prune_multiple: Option<usize>,
    /// Statistics from pp-run calibrate [default: the model's name with .ppcal]
    #[arg(long, value_name = "FILE")]
    pub prune_calibration: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The model, a GGUF file
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: Option<PathBuf>,
    /// The prompt; text on stdin is added below it
    #[arg(long, short = 'p', value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The prompt from a file, less one final line break; '-' = stdin
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: Option<PathBuf>,
    /// System prompt [-sys]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// System prompt from a file [-sysf]
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub system_prompt_file: Option<PathBuf>,
    /// Tokens to generate; -1 = until the model ends, -2 = until the context is full
    #[arg(long, alias = "n-predict", short = 'n', value_name = "N", default_value_t = -1, allow_hyphen_values = true)]
    pub predict: i64,
    /// End the answer before this text (repeatable) [-r]
    #[arg(long, alias = "reverse-prompt", short = 'r', value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Use the chat template [-cnv] [default: if the model has one]
    #[arg(long, visible_alias = "instruct", alias = "chatml", overrides_with = "no_conversation")]
    pub conversation: bool,
    /// Complete the raw prompt, without a chat template [-no-cnv]
    #[arg(long)]
    pub no_conversation: bool,
    #[arg(long, short = 'i', hide = true, alias = "interactive-first")]
    pub interactive: bool,
    /// One turn, then exit [-st]
    #[arg(long)]
    pub single_turn: bool,
    /// A chat template (Jinja), or the name of a well-known one
    #[arg(long, value_name = "TEXT|NAME", allow_hyphen_values = true)]
    pub chat_template: Option<String>,
    /// A chat template (Jinja) in a file
    #[arg(long, value_name = "FILE", allow_hyphen_values = true, conflicts_with = "chat_template")]
    pub chat_template_file: Option<PathBuf>,
    /// Variables for the chat template, a JSON object
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    pub chat_template_kwargs: Option<String>,
    #[arg(long, hide = true, overrides_with = "no_jinja")]
    pub jinja: bool,
    #[arg(long, hide = true)]
    pub no_jinja: bool,
    /// Print the prompt before the answer
    #[arg(long, overrides_with = "no_display_prompt")]
    pub display_prompt: bool,
    #[arg(long, hide = true)]
    pub no_display_prompt: bool,
    /// Process escapes such as \n in -p, -r, --in-prefix and --in-suffix [default]
    #[arg(long, short = 'e', overrides_with = "no_escape")]
    pub escape: bool,
    /// Take them literally
    #[arg(long)]
    pub no_escape: bool,
    /// Print special tokens too [-sp]
    #[arg(long)]
    pub special: bool,
    /// Names of special tokens in your text stand for the tokens
    #[arg(long)]
    pub parse_special: bool,
    /// Prompts that are not UTF-8 are an error, not replaced where they are not
    #[arg(long)]
    pub strict_utf8: bool,
    /// Control characters of the answer reach the terminal, which obeys them
    #[arg(long)]
    pub raw: bool,
    /// Lines of the chat end with a lone '/' instead of at each Enter [-mli]
    #[arg(long)]
    pub multiline_input: bool,
    /// Colours: on, off, auto [-co]
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "on", default_value = "auto", allow_negative_numbers = true)]
    pub color: String,
    /// No cursor control: no colours, no progress bars
    #[arg(long)]
    pub simple_io: bool,
    /// text, or json for one object with text, counts, timings and stop reason
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output_format: String,
    /// Copy the conversation to a file
    #[arg(long, short = 'o', value_name = "FILE", allow_hyphen_values = true)]
    pub output_file: Option<PathBuf>,
    /// What the model made of the prompt is kept in this file, and not computed again when a prompt begins alike
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub prompt_cache: Option<PathBuf>,
    /// The answer is kept there too
    #[arg(long, requires = "prompt_cache", conflicts_with = "prompt_cache_ro")]
    pub prompt_cache_all: bool,
    /// It is read there, and never written
    #[arg(long, requires = "prompt_cache")]
    pub prompt_cache_ro: bool,
    /// Write when each node of the prompt's graphs was computed, as a Chrome trace (for ui.perfetto.dev or
    /// chrome://tracing); they are computed one by one then, which takes somewhat longer
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub trace: Option<PathBuf>,
    /// Text before each input
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub in_prefix: String,
    /// Text after each input
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub in_suffix: String,
    #[arg(long, hide = true, alias = "perf", overrides_with = "no_show_timings")]
    pub show_timings: bool,
    /// No line of statistics after an answer
    #[arg(long, alias = "no-perf")]
    pub no_show_timings: bool,
    /// Go on with the last chat, or with one of those that pp-run chats lists
    #[arg(long = "continue", value_name = "CHAT", num_args = 0..=1, default_missing_value = "", help_heading = "Chat")]
    pub resume: Option<String>,
    /// Keep nothing of this chat on disk
    #[arg(long, help_heading = "Chat")]
    pub no_save: bool,
    /// Keep no history of what was typed
    #[arg(long, help_heading = "Chat")]
    pub no_history: bool,
    /// What to do when the context is full: ask, stop, shift (forget old turns, not the first ones), summarise (old turns)
    #[arg(long, value_name = "WHAT", default_value = "ask", help_heading = "Chat")]
    pub context_full: String,
    #[arg(long, hide = true)]
    pub context_shift: bool,
    /// Show Markdown as what it means, on a terminal with colours: on, off, auto
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Chat")]
    pub markdown: String,
    /// Keep words whole at the terminal's right edge: on, off, auto
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Chat")]
    pub wrap: String,
    /// Where flags are set for all runs (TOML, the flags' long names) [default: ~/.config/pp-run/config.toml]
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub config: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub offline: bool,
    /// Shortest prompt, and shortest answer, that is pruned, in tokens; auto = where each begins to pay, measured
    /// [default: auto]
    #[arg(long, value_name = "N", help_heading = "Probe Pruning")]
    pub prune_min_tokens: Option<String>,
    #[command(flatten)]
    pub prune: PruneArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct ChatsArgs {
    /// Print this chat
    #[arg(long, value_name = "CHAT")]
    pub show: Option<String>,
    /// Delete these chats
    #[arg(long, value_name = "CHAT", num_args = 1.., conflicts_with_all = ["show", "delete_all"])]
    pub delete: Vec<String>,
    /// Delete all chats
    #[arg(long, conflicts_with = "show")]
    pub delete_all: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The model
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    pub path: Option<PathBuf>,
    #[arg(long, short = 'm', value_name = "FILE", hide = true)]
    pub model: Option<PathBuf>,
    /// List the tensors too
    #[arg(long)]
    pub tensors: bool,
    /// List what can be pruned
    #[arg(long, conflicts_with_all = ["tensors", "json"])]
    pub prunable: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: PathBuf,
    /// The text
    #[arg(long, short = 'p', value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The text from a file; '-' = stdin [default: stdin]
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true, conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub stdin: bool,
    /// Print the numbers only, as a JSON array
    #[arg(long)]
    pub ids: bool,
    /// Print the number of tokens only
    #[arg(long)]
    pub show_count: bool,
    /// Add no BOS
    #[arg(long)]
    pub no_bos: bool,
    /// Names of special tokens are plain text
    #[arg(long)]
    pub no_parse_special: bool,
    /// Take \n and the like in -p literally
    #[arg(long)]
    pub no_escape: bool,
    #[arg(long, short = 'e', hide = true, overrides_with = "no_escape")]
    pub escape: bool,
    #[arg(long, hide = true)]
    pub log_disable: bool,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: PathBuf,
    /// The text
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: PathBuf,
    /// Windows to compute; -1 = all
    #[arg(long, value_name = "N", default_value_t = -1, allow_hyphen_values = true)]
    pub chunks: i64,
    /// Probe Pruning's protocol: so many consecutive windows in one pass, all positions counted, no BOS added
    #[arg(long, value_name = "B", requires = "seq")]
    pub batch: Option<u32>,
    /// Probe Pruning's protocol: tokens of a window
    #[arg(long, value_name = "T", requires = "batch")]
    pub seq: Option<u32>,
    /// Compare with the dense model in the same run: KL divergence, top-1 agreement and both perplexities
    #[arg(long)]
    pub kl: bool,
    #[command(flatten)]
    pub prune: PruneArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: PathBuf,
    /// A text [default: text that the model itself writes]
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: Option<PathBuf>,
    /// Where to write [default: the model's name with .ppcal]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Windows of the text
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub seqs: u32,
    /// Tokens of a window
    #[arg(long, value_name = "T", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub seq_len: u32,
    /// Windows in one pass (FLAP's running means depend on it)
    #[arg(long, value_name = "B", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Leave out the means per position: a smaller file, but no --prune-history position and no --prune-paper
    #[arg(long)]
    pub no_positions: bool,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model (repeatable)
    #[arg(long, short = 'm', value_name = "FILE", action = ArgAction::Append, required = true, allow_hyphen_values = true)]
    pub model: Vec<PathBuf>,
    /// Lengths of prompts: a list such as 512,2048 or a range first-last+step; 0 = none [default: 512]
    #[arg(long, short = 'p', value_name = "N,..", allow_hyphen_values = true)]
    pub n_prompt: Vec<String>,
    /// Tokens to generate; 0 = none [default: 128]
    #[arg(long, short = 'n', value_name = "N,..", allow_hyphen_values = true)]
    pub n_gen: Vec<String>,
    /// Prompt and generation in one test [-pg]
    #[arg(long, value_name = "PP,TG")]
    pub prompt_gen: Vec<String>,
    /// Tokens in the cache before the test
    #[arg(long, short = 'd', value_name = "N,..", default_value = "0")]
    pub n_depth: Vec<String>,
    /// Repetitions of each test
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    pub repetitions: u32,
    /// Format: md, json, csv
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "md")]
    pub output: String,
    /// Run llama.cpp's own engine alternately in the same process, and print the ratio
    #[arg(long, value_name = "ENGINE")]
    pub baseline: Option<String>,
    /// Shares of heads and MLP channels to leave out, 0 to 0.8: a list; each test runs with each of them
    #[arg(
        long,
        value_name = "R,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "Probe Pruning"
    )]
    pub prune: Vec<f64>,
    /// Shortest prompt, and shortest answer, that is pruned, in tokens; auto = where each begins to pay, measured
    /// [default: auto]
    #[arg(long, value_name = "N", help_heading = "Probe Pruning")]
    pub prune_min_tokens: Option<String>,
    #[command(flatten)]
    pub prune_how: PruneHowArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}
