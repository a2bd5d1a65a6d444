//! What a command runs with: every flag resolved to its meaning and checked, nothing left to look up.

use std::path::PathBuf;

/// One invocation of the program.
#[derive(Debug)]
pub enum Command {
    /// Answer a prompt, or chat: `pp-run -m MODEL [-p PROMPT]`.
    Run(RunOptions),
    /// `pp-run show MODEL`
    Show(ShowOptions),
    /// `pp-run tokenize -m MODEL`
    Tokenize(TokenizeOptions),
    /// `pp-run perplexity -m MODEL -f TEXT`
    Perplexity(PerplexityOptions),
    /// `pp-run bench -m MODEL`
    Bench(BenchOptions),
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
        }
    }
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
#[derive(Debug, Clone, Default)]
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
    /// `--in-prefix`, `--in-suffix`
    pub in_prefix: String,
    /// see `in_prefix`
    pub in_suffix: String,
    /// The closing stats line (`--no-show-timings` turns it off).
    pub show_timings: bool,
}

/// `pp-run show`
#[derive(Debug, Clone)]
pub struct ShowOptions {
    /// The GGUF file.
    pub path: PathBuf,
    /// List the tensors too.
    pub tensors: bool,
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
}
