//! What a command runs with: every flag resolved to its meaning and checked, nothing left to look up.

use std::ffi::OsString;
use std::path::PathBuf;

/// One invocation of the program.
#[derive(Debug)]
pub enum Command {
    /// Answer a prompt, or chat: `pp-run -m MODEL [-p PROMPT]`.
    Run(Box<RunOptions>),
    /// `pp-run`: which models are here?
    Models,
    /// A model is to be run, but none is named
    NoModel,
    /// `pp-run show MODEL`
    Show(ShowOptions),
    /// `pp-run tokenize -m MODEL`
    Tokenize(TokenizeOptions),
    /// `pp-run perplexity -m MODEL -f TEXT`
    Perplexity(PerplexityOptions),
    /// `pp-run calibrate -m MODEL`
    Calibrate(CalibrateOptions),
    /// `pp-run bench -m MODEL`
    Bench(BenchOptions),
    /// `pp-run chats`
    Chats(ChatsOptions),
    /// `pp-run doctor`
    Doctor,
    /// `pp-run completions SHELL`
    Completions(clap_complete::Shell),
    /// `pp-run man`
    Man,
}

/// Where messages go and how many there are.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// 0 output only, 1 errors, 2 warnings, 3 notes and stats (default), 4 trace, 5 debug. `-q` is 1.
    pub verbosity: u8,
    /// Copy of all messages, appended.
    pub file: Option<PathBuf>,
}

/// Which model, and how it is brought into memory.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// The GGUF file.
    pub path: PathBuf,
    /// Layers on the GPU; `None` = as many as fit; counted from the last layer, the output counts as one more.
    pub n_gpu_layers: Option<u32>,
    /// Copy the weights instead of using the mapped file in place.
    pub no_mmap: bool,
    /// Lock the weights in memory.
    pub mlock: bool,
    /// Look for NaN and infinities in the weights before the run.
    pub check_tensors: bool,
    /// Metadata replaced before the model is built: `key=type:value`.
    pub override_kv: Vec<(String, OverrideValue)>,
    /// Whose kernels multiply weights on the CPU.
    pub kernels: Kernels,
    /// How long weights stay packed for our own kernels.
    pub pack: Pack,
}

impl ModelOptions {
    /// The defaults, for this file.
    pub fn new(path: impl Into<PathBuf>) -> ModelOptions {
        ModelOptions {
            path: path.into(),
            n_gpu_layers: None,
            no_mmap: false,
            mlock: false,
            check_tensors: false,
            override_kv: Vec::new(),
            kernels: Kernels::Auto,
            pack: Pack::Batch,
        }
    }
}

/// Whose kernels multiply weights on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Whichever are measured faster for this model here
    Auto,
    /// ggml's: bit-equal to llama.cpp
    Ggml,
    /// Our own, on 8-bit integers
    Native,
}

impl Kernels {
    /// Name in flags and tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernels::Auto => "auto",
            Kernels::Ggml => "ggml",
            Kernels::Native => "native",
        }
    }
}

/// How long weights stay packed for our own kernels' products of many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pack {
    /// Packed anew for each batch, panel by panel: no memory
    Batch,
    /// Packed when the model is loaded: 9 bits for each weight
    Resident,
}

/// Value of an `--override-kv`.
#[derive(Debug, Clone, PartialEq)]
pub enum OverrideValue {
    /// `int:`
    Int(i64),
    /// `float:`
    Float(f64),
    /// `bool:`
    Bool(bool),
    /// `str:`
    Str(String),
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    /// 32-bit floats
    F32,
    /// 16-bit floats (the default)
    F16,
    /// 8-bit blocks
    Q8_0,
}

/// `on | off | auto`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tristate {
    /// `on`, `1`, `true`, `yes`
    On,
    /// `off`, `0`, `false`, `no`
    Off,
    /// `auto`, `-1`
    #[default]
    Auto,
}

/// RoPE settings that replace the file's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeOptions {
    /// `--rope-freq-base`
    pub freq_base: Option<f32>,
    /// `--rope-freq-scale`
    pub freq_scale: Option<f32>,
    /// `--rope-scaling`
    pub scaling: Option<RopeScaling>,
    /// `--yarn-orig-ctx`
    pub yarn_orig_ctx: Option<u32>,
    /// `--yarn-ext-factor`
    pub yarn_ext_factor: Option<f32>,
    /// `--yarn-attn-factor`
    pub yarn_attn_factor: Option<f32>,
    /// `--yarn-beta-slow`
    pub yarn_beta_slow: Option<f32>,
    /// `--yarn-beta-fast`
    pub yarn_beta_fast: Option<f32>,
}

/// How RoPE frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeScaling {
    /// not at all
    None,
    /// all frequencies divided by a factor
    Linear,
    /// YaRN
    Yarn,
}

/// The session's sizes and threads.
#[derive(Debug, Clone)]
pub struct ContextOptions {
    /// Context in tokens. `None`: the model's training length, made smaller if memory asks for it;
    /// `Some(0)`: the training length exactly.
    pub n_ctx: Option<u32>,
    /// Logical batch.
    pub n_batch: u32,
    /// Physical (micro-) batch.
    pub n_ubatch: u32,
    /// Threads for decoding.
    pub n_threads: usize,
    /// Threads for prompts.
    pub n_threads_batch: usize,
    /// Type of cached keys.
    pub cache_type_k: CacheType,
    /// Type of cached values.
    pub cache_type_v: CacheType,
    /// Flash attention; `Auto` = on where it can be.
    pub flash_attn: Tristate,
    /// RoPE settings that replace the file's.
    pub rope: RopeOptions,
}

impl ContextOptions {
    /// llama.cpp's defaults, with `n_threads` threads.
    pub fn new(n_threads: usize) -> ContextOptions {
        ContextOptions {
            n_ctx: None,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads,
            n_threads_batch: n_threads,
            cache_type_k: CacheType::F16,
            cache_type_v: CacheType::F16,
            flash_attn: Tristate::Auto,
            rope: RopeOptions::default(),
        }
    }
}

/// What decides which heads and channels a batch runs on (algorithm.md gives the sources).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneMethod {
    /// Probe Pruning: a small probe of the batch, fused with history
    Pp,
    /// The probe is the whole batch: the upper bound on quality, no method to save time
    FullBatch,
    /// Probe Pruning's metric on calibration statistics alone
    Static,
    /// Wanda on structures
    WandaSp,
    /// FLAP
    Flap,
    /// FLAP with the means divided by the batch size once more, as Probe Pruning's code has it
    FlapAsCoded,
}

impl PruneMethod {
    /// Name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            PruneMethod::Pp => "pp",
            PruneMethod::FullBatch => "full-batch",
            PruneMethod::Static => "static",
            PruneMethod::WandaSp => "wanda-sp",
            PruneMethod::Flap => "flap",
            PruneMethod::FlapAsCoded => "flap-as-coded",
        }
    }

    /// Whether the choice is made anew for each batch.
    pub fn looks_at_batch(self) -> bool {
        matches!(self, PruneMethod::Pp | PruneMethod::FullBatch)
    }
}

/// Which tokens and samples are the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picker {
    /// At even distances
    Even,
    /// Those of the largest residual norm, as in the paper
    Residual,
}

/// What a channel's states and weights are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The paper's: energy times `sqrt(sum_j W_jk^4)`
    Ppsp,
    /// Energy of the states of each token divided by their norm, times `sqrt(sum_j W_jk^2)`
    Normalised,
}

/// What of earlier batches the probe is fused with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryKind {
    /// Nothing
    None,
    /// One mean for each channel
    Channel,
    /// One mean for each channel and position, as in the paper
    Position,
}

/// Which heads and channels to leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct PruneOptions {
    /// Share of heads and channels to leave out, over all layers: more than 0, at most 0.8
    pub ratio: f64,
    /// What decides
    pub method: PruneMethod,
    /// The probe
    pub picker: Picker,
    /// Share of the tokens in the probe
    pub tokens: f64,
    /// Share of the samples in the probe
    pub samples: f64,
    /// What a state is worth
    pub metric: Metric,
    /// First layers that stay whole
    pub skip: usize,
    /// Attention stays whole
    pub mlp_only: bool,
    /// What the probe is fused with
    pub history: HistoryKind,
    /// Share of the old in the history after a batch; 1 = the history stays as it was calibrated
    pub momentum: f64,
    /// The number of kept channels is a multiple of this
    pub multiple: usize,
    /// Shortest piece of a prompt that is pruned; `None` = measured
    pub min_tokens: Option<usize>,
    /// The statistics; next to the model if not given
    pub calibration: Option<PathBuf>,
    /// Where to write what each block kept
    pub dump: Option<PathBuf>,
    /// Keep what this dump says
    pub replay: Option<PathBuf>,
}

impl PruneOptions {
    /// For one prompt at a time, by measurement (README): few, evenly spaced tokens, and no history.
    pub fn new(ratio: f64) -> PruneOptions {
        PruneOptions {
            ratio,
            method: PruneMethod::Pp,
            picker: Picker::Even,
            tokens: 0.1,
            samples: 1.0,
            metric: Metric::Normalised,
            skip: 3,
            mlp_only: false,
            history: HistoryKind::None,
            momentum: 0.99,
            multiple: 64,
            min_tokens: None,
            calibration: None,
            dump: None,
            replay: None,
        }
    }

    /// The paper's own configuration.
    pub fn paper(ratio: f64) -> PruneOptions {
        PruneOptions {
            picker: Picker::Residual,
            tokens: 0.5,
            samples: 0.05,
            metric: Metric::Ppsp,
            history: HistoryKind::Position,
            ..PruneOptions::new(ratio)
        }
    }

    /// Whether statistics of a calibration are needed.
    pub fn needs_calibration(&self) -> bool {
        match self.method {
            PruneMethod::Pp => self.history != HistoryKind::None,
            PruneMethod::FullBatch => false,
            _ => true,
        }
    }
}

/// How the next token is drawn. Defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// `None` = random, and the seed drawn is reported.
    pub seed: Option<u32>,
    /// 0.8; at most 0 = greedy
    pub temperature: f32,
    /// 40; 0 = off
    pub top_k: i32,
    /// 0.95; 1 = off
    pub top_p: f32,
    /// 0.05; 0 = off
    pub min_p: f32,
    /// 1.0 = off
    pub repeat_penalty: f32,
    /// 64; 0 = off, -1 = whole context
    pub repeat_last_n: i32,
    /// 0 = off
    pub presence_penalty: f32,
    /// 0 = off
    pub frequency_penalty: f32,
    /// Never draw an end-of-generation token.
    pub ignore_eos: bool,
}

impl Default for SamplingOptions {
    fn default() -> SamplingOptions {
        SamplingOptions {
            seed: None,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            ignore_eos: false,
        }
    }
}

/// How many tokens an answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predict {
    /// `-n N`
    AtMost(u64),
    /// `-n -1`: until the model ends (or the context is full)
    Unlimited,
    /// `-n -2`: until the context is full
    FillContext,
}

/// Format of an answer on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// The answer's text.
    Text,
    /// One JSON object.
    Json,
}

/// Whether a prompt is a chat turn or raw text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversation {
    /// `-cnv`: through the chat template
    On,
    /// `-no-cnv`: raw completion
    Off,
    /// through the template if the model has one
    Auto,
}

/// Where a chat template comes from, if not from the model.
#[derive(Debug, Clone, PartialEq)]
pub enum TemplateSource {
    /// `--chat-template`: the template's text, or the name of a well-known one (`chatml`, `llama2`, `llama3`, ...)
    TextOrName(String),
    /// `--chat-template-file`
    File(PathBuf),
}

/// One-shot completion and chat.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Messages.
    pub log: LogOptions,
    /// The model.
    pub model: ModelOptions,
    /// The session.
    pub context: ContextOptions,
    /// The sampler.
    pub sampling: SamplingOptions,
    /// What to prune, if at all
    pub prune: Option<PruneOptions>,
    /// `-p`, escapes processed
    pub prompt: Option<String>,
    /// `-f`; `-` is stdin
    pub prompt_file: Option<PathBuf>,
    /// `-sys`
    pub system: Option<String>,
    /// `-sysf`
    pub system_file: Option<PathBuf>,
    /// `-n`
    pub predict: Predict,
    /// `-r`, `--stop`
    pub stop: Vec<String>,
    /// `-cnv`, `-no-cnv`
    pub conversation: Conversation,
    /// `-st`: one turn, then exit
    pub single_turn: bool,
    /// `--chat-template`, `--chat-template-file`
    pub template: Option<TemplateSource>,
    /// `--chat-template-kwargs`: a JSON object
    pub template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,
    /// Echo the prompt on stdout.
    pub display_prompt: bool,
    /// `-sp`: print special tokens
    pub special: bool,
    /// Text of the user may name special tokens (`--parse-special`).
    pub parse_special: bool,
    /// Prompts must be UTF-8.
    pub strict_utf8: bool,
    /// Control characters of the answer reach a terminal.
    pub raw: bool,
    /// `-mli`
    pub multiline_input: bool,
    /// `--color`
    pub color: Tristate,
    /// `--simple-io`
    pub simple_io: bool,
    /// `--output-format`
    pub output_format: OutputFormat,
    /// `-o`: a copy of the conversation
    pub output_file: Option<PathBuf>,
    /// `--prompt-cache`: where tokens and their cells are kept
    pub prompt_cache: Option<PathBuf>,
    /// `--prompt-cache-all`: those of the answer too
    pub prompt_cache_all: bool,
    /// `--prompt-cache-ro`: the file is only read
    pub prompt_cache_ro: bool,
    /// `--trace`: times of the prompt's nodes
    pub trace: Option<PathBuf>,
    /// `--in-prefix`, `--in-suffix`
    pub in_prefix: String,
    /// see `in_prefix`
    pub in_suffix: String,
    /// The line of statistics after an answer (`--no-show-timings` turns it off).
    pub show_timings: bool,
    /// `--continue`: go on with a saved chat
    pub resume: Option<Resume>,
    /// `--no-save`
    pub no_save: bool,
    /// `--no-history`
    pub no_history: bool,
    /// `--context-full`
    pub context_full: ContextFull,
    /// `--markdown`
    pub markdown: Tristate,
    /// `--wrap`
    pub wrap: Tristate,
    /// The arguments that this was made from, which a chat's `/set` adds to: `--name=value` each
    pub args: Vec<OsString>,
    /// Long names of the flags that the command line itself has
    pub given: Vec<String>,
}

/// Flags that a chat can change as it goes, by their long names.
pub const SETTABLE: &[&str] = &[
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "repeat-penalty",
    "repeat-last-n",
    "presence-penalty",
    "frequency-penalty",
    "seed",
    "ignore-eos",
    "predict",
    "stop",
    "prune",
    "prune-method",
    "prune-picker",
    "prune-tokens",
    "prune-metric",
    "prune-skip",
    "prune-mlp-only",
    "prune-history",
    "prune-momentum",
    "prune-multiple",
    "prune-min-tokens",
    "context-full",
    "markdown",
    "wrap",
    "raw",
    "special",
    "in-prefix",
    "in-suffix",
];

/// Which saved chat to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The one that was written to last
    Last,
    /// By its name
    Named(String),
}

/// What a chat does when its context is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextFull {
    /// Let the user choose
    Ask,
    /// Nothing: the turn is refused
    Stop,
    /// Forget old turns, but for the system prompt and the first exchange
    Shift,
    /// Put a summary in their place
    Summarise,
}

/// `pp-run chats`
#[derive(Debug, Clone)]
pub enum ChatsOptions {
    /// List them
    List,
    /// Print one
    Show(String),
    /// Delete these
    Delete(Vec<String>),
    /// Delete all
    DeleteAll,
}

/// `pp-run show`
#[derive(Debug, Clone)]
pub struct ShowOptions {
    /// The GGUF file.
    pub path: PathBuf,
    /// List the tensors too.
    pub tensors: bool,
    /// List what can be pruned.
    pub prunable: bool,
    /// One JSON object instead of text.
    pub json: bool,
}

/// `pp-run tokenize`
#[derive(Debug, Clone)]
pub struct TokenizeOptions {
    /// The GGUF file.
    pub path: PathBuf,
    /// `-p`, escapes processed
    pub prompt: Option<String>,
    /// `-f`, or `-` for stdin; stdin if neither is given
    pub prompt_file: Option<PathBuf>,
    /// Only the ids, as one JSON array.
    pub ids: bool,
    /// Only the number of tokens.
    pub show_count: bool,
    /// `--no-bos`
    pub no_bos: bool,
    /// `--no-parse-special`
    pub no_parse_special: bool,
}

/// `pp-run perplexity`
#[derive(Debug, Clone)]
pub struct PerplexityOptions {
    /// Messages.
    pub log: LogOptions,
    /// The model.
    pub model: ModelOptions,
    /// The session; `n_ctx` is the window's length (512 if not given).
    pub context: ContextOptions,
    /// `-f`
    pub file: PathBuf,
    /// `--chunks`; `None` = all
    pub chunks: Option<usize>,
    /// `--batch`, `--seq`: windows in one pass, tokens of a window
    pub batch: Option<(usize, usize)>,
    /// `--kl`
    pub kl: bool,
    /// What to prune, if at all
    pub prune: Option<PruneOptions>,
}

/// `pp-run calibrate`
#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    /// Messages.
    pub log: LogOptions,
    /// The model.
    pub model: ModelOptions,
    /// The session.
    pub context: ContextOptions,
    /// `-f`; `None` = the model writes the text
    pub file: Option<PathBuf>,
    /// `-o`
    pub output: Option<PathBuf>,
    /// `--seqs`
    pub n_seqs: usize,
    /// `--seq-len`
    pub seq_len: usize,
    /// `--batch`: windows in one pass
    pub batch: usize,
    /// Means per position too.
    pub positions: bool,
}

/// Format of a table on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Markdown
    Md,
    /// JSON array
    Json,
    /// CSV
    Csv,
}

/// `pp-run bench`
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Messages.
    pub log: LogOptions,
    /// The models, one after the other (`path` of the base options is each of these).
    pub models: Vec<PathBuf>,
    /// Everything else about the model.
    pub model: ModelOptions,
    /// The session.
    pub context: ContextOptions,
    /// `-p`: prompt lengths
    pub n_prompt: Vec<u32>,
    /// `-n`: tokens generated
    pub n_gen: Vec<u32>,
    /// `-pg`: prompt then generation
    pub prompt_gen: Vec<(u32, u32)>,
    /// `-d`: tokens in the cache before the test
    pub n_depth: Vec<u32>,
    /// `-r`
    pub repetitions: u32,
    /// `-t` list
    pub n_threads: Vec<usize>,
    /// `-o`
    pub format: TableFormat,
    /// `--baseline llama.cpp`: run libllama alternately, print both and the ratio
    pub baseline: bool,
    /// What to prune, if at all: each test runs with each of these
    pub prune: Vec<Option<PruneOptions>>,
}
