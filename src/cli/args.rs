//! The command line as clap sees it, after [`super::normalise`].

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

/// Runs a GGUF language model in the terminal, offline.
///
/// With -p (or -f, or text on stdin) pp-run answers and exits; on a terminal without a prompt it chats. pp-run FILE.gguf
/// is short for pp-run -m FILE.gguf, and pp-run alone lists the models that it finds. pp-run help COMMAND shows the flags
/// of a command. A link to pp-run that is named llama-bench, llama-perplexity or llama-tokenize runs that command.
///
/// Flags are llama.cpp's and keep their names and meanings, single-dash ones (-ngl, -ctk), old spellings (--top_k) and a
/// bare -fa included. Flags that llama.cpp has and pp-run does not are ignored with a note where they would change
/// nothing, and refused with one where they would.
///
/// The answer goes to stdout, and nothing else does. Progress, notes and one line of statistics go to stderr.
#[derive(Debug, Parser)]
#[command(name = "pp-run", bin_name = "pp-run", version, max_term_width = 110, after_long_help = AFTER_HELP)]
#[command(args_override_self = true, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Sub>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What a reader of the whole help needs beside the flags. Lines have 70 columns at most and are indented: the manual page would fill
/// others.
const AFTER_HELP: &str = "\
EXAMPLES
  One answer; with a text from a pipe below the prompt:
    pp-run -m model.gguf -p \"Why is the sea salty?\"
    git diff | pp-run -m model.gguf -p \"Summarise:\"
  A chat, in which /help lists the commands; the last one once more:
    pp-run -m model.gguf
    pp-run --continue
  A long text, a fifth of heads and channels left out:
    pp-run -m model.gguf -f long.txt --prune 0.2
  The same text a second time, without processing it again:
    pp-run -m model.gguf -f long.txt --prompt-cache long.cache
  The flags of a command:
    pp-run help bench

STATISTICS
  After an answer stderr has one line; here of -n 100 --prune 0.4:

  prompt 1064 tokens, 341.2 tok/s (probe 8%, pack 6%, compute 86%) |
  generated 100 tokens, 27.9 tok/s | first token 3.119 s |
  context 1163/1280 | peak memory 198.6 MiB |
  probe 104 of 1024 tokens, kept 66.2%; 40 tokens dense; answer on
  34.5 MiB of reduced weights made in 0.11 s |
  seed 1491112353 | logits fe6485c8ffba508d | limit

  probe   share of the prompt's time that finding what is kept took
  pack    share in which weights were packed for our own kernels
  kept    share of the blocks' weights that the pruned tokens ran on
  logits  a hash of the last ones: equal where runs computed the same
  limit   why it ended: end_of_text, stop_string, limit (of -n),
          context_full, interrupted

  Tokens out of --prompt-cache or of earlier turns are counted as
  cached. A chat has a shorter line; /set verbose shows all numbers.

ENVIRONMENT
  PP_ARG_NAME
      any flag that the command line does not have, by its long name:
      PP_ARG_TOP_K=20, PP_ARG_NO_SAVE=1, PP_ARG_MODEL=model.gguf
  LLAMA_ARG_NAME
      after these llama.cpp's own: MODEL, N_PREDICT, CTX_SIZE, BATCH,
      UBATCH, THREADS, THREADS_BATCH, N_GPU_LAYERS, FLASH_ATTN,
      CACHE_TYPE_K, CACHE_TYPE_V, LOAD_MODE, CHAT_TEMPLATE,
      CHAT_TEMPLATE_FILE, TOP_K, TEMP, ROPE_FREQ_BASE, ROPE_FREQ_SCALE
  NO_COLOR, CLICOLOR_FORCE, TERM=dumb
      no colours; colours; no colours and no cursor control
  VISUAL, EDITOR
      the editor of Ctrl-G and /edit in a chat
  HOME, XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_STATE_HOME
      where the files below are

CONFIGURATION
  Answers and chats take what neither the command line nor the
  environment says from a TOML file with the flags' long names. Other
  commands do not read it. A name that is no flag is an error.

  top-k = 20
  no-save = true
  stop = [\"a\", \"b\"]
  model = \"/path/model.gguf\"

FILES
  ~/.config/pp-run/config.toml   the configuration
  ~/.local/share/pp-run/chats/   saved chats, one file each
  ~/.local/state/pp-run/history  what was typed in chats
  MODEL.ppcal                    what pp-run calibrate found, beside
                                 MODEL.gguf
  Models are looked for in ./models, ., ~/models,
  ~/.local/share/pp-run/models and the folders of llama.cpp, Hugging
  Face, LM Studio, GPT4All, Jan and ollama.

EXIT CODES
  0    success, or the reader of stdout closed the pipe
  1    the run failed
  2    wrong usage
  65   a damaged file, or a prompt longer than the context
  66   no such input, or it cannot be read
  69   a sound file that pp-run does not support
  70   a bug in pp-run
  71   not enough memory
  73   a file cannot be created
  74   reading or writing failed, or a file changed while in use
  130  interrupted (Ctrl-C)
  143  terminated";

/// What else pp-run does.
#[derive(Debug, Subcommand)]
#[command(args_override_self = true)]
pub enum Sub {
    /// What is in a GGUF file
    ///
    /// Prints the architecture, the number of parameters, the types of tensors and all metadata, the chat template included.
    /// Nothing is loaded, so that a file that pp-run cannot run can be looked at too.
    Show(ShowArgs),
    /// Tokens of a text
    ///
    /// Prints each token's number and text. The text comes from -p, -f or stdin.
    Tokenize(TokenizeArgs),
    /// Perplexity of a model on a text, as llama-perplexity computes it
    ///
    /// The text is cut into windows of -c tokens (512 without it), and the second half of each is scored. With --batch and
    /// --seq it is Probe Pruning's protocol instead: windows side by side in one pass, scored whole, with F32 in the cache.
    /// The result is on stdout.
    #[command(
        alias = "ppl",
        after_long_help = "\
EXAMPLES
  pp-run perplexity -m model.gguf -f text.txt -c 1024 --chunks 20
  Against the dense model in the same run:
    pp-run perplexity -m model.gguf -f text.txt --prune 0.2 --kl
  The paper's protocol and configuration:
    pp-run perplexity -m model.gguf -f text.txt --batch 20 \\
      --seq 1024 --chunks 20 --prune 0.4 --prune-paper"
    )]
    Perplexity(PerplexityArgs),
    /// Statistics of a model for pruning, written next to it
    ///
    /// The dense model runs over the windows of a text, and means and fluctuations of its channels are written to a file. They
    /// are needed by --prune-history channel and position (so by --prune-paper) and by --prune-method static, wanda-sp, flap
    /// and flap-as-coded; a plain --prune needs none. Without -f the model writes the text itself.
    ///
    /// Means by position, for --prune-history position, take 4 bytes for each channel of each layer and position.
    Calibrate(CalibrateArgs),
    /// Speed of prompt processing and generation, as llama-bench measures it
    ///
    /// pp512 is a prompt of 512 tokens, tg128 an answer of 128; @ d512 means that 512 tokens were in the cache before. Each
    /// test runs once to warm up, then -r times, with all ratios of --prune and the baseline alternately in one process;
    /// ratios are medians over the repetitions, and more than 1 means that pp-run is faster.
    #[command(after_long_help = "\
EXAMPLES
  pp-run bench -m model.gguf -p 512 -n 128 --baseline llama.cpp
  All ratios in one process, alternately:
    pp-run bench -m model.gguf -p 512 -n 128 -d 512 \\
      --prune 0,0.2,0.4 --baseline llama.cpp")]
    Bench(BenchArgs),
    /// Saved chats: lists them; shows one as text, or deletes
    ///
    /// pp-run --continue CHAT goes on with one.
    Chats(ChatsArgs),
    /// What pp-run sees of this machine and makes of it, and what would make it faster
    Doctor,
    /// Shell completions on stdout
    #[command(after_long_help = "\
EXAMPLES
  pp-run completions bash > ~/.local/share/bash-completion/completions/pp-run
  pp-run completions fish > ~/.config/fish/completions/pp-run.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The manual page (roff) on stdout
    #[command(after_long_help = "\
EXAMPLES
  pp-run man | man -l -
  pp-run man > ~/.local/share/man/man1/pp-run.1")]
    Man,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Layers on the GPU: a number, 'all' or 'auto' [-ngl]
    ///
    /// They are counted from the last layer, the output as one more, and go to the first GPU; auto takes as many as fit in its
    /// free memory. Needs a build with the cargo feature cuda, metal or vulkan.
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
    ///
    /// If the system does not allow it (ulimit -l) they are used unlocked, with a warning.
    #[arg(long)]
    pub mlock: bool,
    /// Look for NaN and infinities in the weights of files beyond 2 GiB too
    ///
    /// Files up to 2 GiB are always looked at.
    #[arg(long)]
    pub check_tensors: bool,
    /// Replace metadata: KEY=TYPE:VALUE with int, float, bool or str
    ///
    /// Repeatable; several can stand behind one flag, with commas between them.
    #[arg(long, value_name = "K=T:V", action = ArgAction::Append)]
    pub override_kv: Vec<String>,
    /// Whose kernels multiply weights on the CPU: ggml (as llama.cpp), native (our own), auto (the faster ones)
    ///
    /// ggml gives llama.cpp's very numbers. native multiplies in 8 bits, straight from the file, with AVX-512 VNNI, AVX-VNNI,
    /// AVX2, NEON with dot products, or on any processor. auto times a matrix of the model with both when it is loaded, and
    /// takes those that are faster for a prompt of 512 tokens and an answer of 64; where both are about as fast, or other
    /// programs run meanwhile, two runs may choose differently and differ in the last digits, which naming one prevents. With
    /// --no-mmap, and with all layers on the GPU, auto is ggml.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub kernels: String,
    /// When weights are packed for our own kernels: batch (anew for each), resident (once, at the load)
    ///
    /// Prompts are multiplied with weights in a layout of their own. batch makes it a few rows at a time, which takes no
    /// memory and, by the line of statistics (pack), little time; resident keeps it, 9 bits for each weight.
    #[arg(long, value_name = "HOW", default_value = "batch")]
    pub pack: String,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    /// Context in tokens; 0 = as trained [default: as trained, less if memory is short]
    ///
    /// Without it a single answer of -n tokens takes no more than it and its prompt, or the prompt cache, can need.
    #[arg(long, short = 'c', value_name = "N", allow_hyphen_values = true)]
    pub ctx_size: Option<i64>,
    /// Logical batch: the micro-batch is no larger
    ///
    /// perplexity runs as many windows side by side as fit in it.
    #[arg(long, short = 'b', value_name = "N", default_value_t = 2048, allow_hyphen_values = true)]
    pub batch_size: i64,
    /// Micro-batch: tokens of a prompt computed at once [-ub]
    ///
    /// With --prune each has a probe and kept heads and channels of its own.
    #[arg(long, value_name = "N", default_value_t = 512, allow_hyphen_values = true)]
    pub ubatch_size: i64,
    /// Threads for generation; -1 = one per core [default: -1]
    ///
    /// Cores are the physical ones that the process may use, only the performance cores where there are two kinds, and no more
    /// than a control group's quota. bench takes a list.
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
    ///
    /// The line of statistics says which it was.
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
    ///
    /// The share counts over all L layers; as the first ones stay dense (--prune-skip N), the others leave out L / (L - N)
    /// times as much. 0 is exactly the dense model. Keys and values are never left out of an answer's context.
    ///
    /// Before each block of the model runs on a micro-batch of a prompt, a probe of its tokens finds what is kept. The answer
    /// runs on reduced weights, chosen by the prompt and made once, before its second token. A prompt or an answer that is too
    /// short to gain runs dense (--prune-min-tokens).
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    pub prune: Option<f64>,
    #[command(flatten)]
    pub how: PruneHowArgs,
    /// Write what each block of each batch kept, as JSON
    ///
    /// --prune-replay runs with it again.
    #[arg(long, value_name = "FILE")]
    pub prune_dump: Option<PathBuf>,
    /// Keep what a dump of --prune-dump says
    ///
    /// The dump must be of the same model. Not together with --prompt-cache.
    #[arg(long, value_name = "FILE")]
    pub prune_replay: Option<PathBuf>,
}

/// What holds for any ratio.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Probe Pruning")]
pub struct PruneHowArgs {
    /// The paper's own configuration, for batches of many samples; the other flags change it
    ///
    /// A probe of half of the tokens and 5% of the samples, of the largest residual norm; the metric PPsp; a history by position
    /// with momentum 0.99, for which pp-run calibrate must have run. The defaults are for one prompt at a time instead: a tenth
    /// of the tokens at even distances, no history, and a metric on states that are normalised token by token.
    #[arg(long)]
    pub prune_paper: bool,
    /// What decides: pp, full-batch, static, wanda-sp, flap, flap-as-coded [default: pp]
    ///
    /// pp is Probe Pruning. full-batch takes the whole batch as the probe, which shows the best quality that a probe can reach
    /// and saves no time. The others never look at the batch, but at statistics of pp-run calibrate: static is pp's metric on
    /// these; flap-as-coded is FLAP as Probe Pruning's published code has it. A flag that would have no effect on the method is
    /// refused.
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
    ///
    /// ppsp is also the default of full-batch and of the histories channel and position.
    #[arg(long, value_name = "METRIC")]
    pub prune_metric: Option<String>,
    /// First layers that stay dense [default: 3]
    #[arg(long, value_name = "N")]
    pub prune_skip: Option<usize>,
    /// Attention stays dense
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
    ///
    /// A model in several files, as llama-gguf-split makes them, is given by its first.
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: Option<PathBuf>,
    /// The prompt; text on stdin is added below it
    ///
    /// It goes through the model's chat template, if there is one; --no-conversation completes it as it is.
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
    ///
    /// The text itself is no part of the answer.
    #[arg(long, alias = "reverse-prompt", short = 'r', value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Use the chat template [-cnv] [default: if the model has one]
    ///
    /// With a prompt and on a terminal, the chat begins with the prompt and goes on.
    #[arg(long, visible_alias = "instruct", alias = "chatml", overrides_with = "no_conversation")]
    pub conversation: bool,
    /// Complete the raw prompt, without a chat template [-no-cnv]
    ///
    /// Names of special tokens in it stand for the tokens.
    #[arg(long)]
    pub no_conversation: bool,
    #[arg(long, short = 'i', hide = true, alias = "interactive-first")]
    pub interactive: bool,
    /// One turn, then exit [-st]
    #[arg(long)]
    pub single_turn: bool,
    /// A chat template (Jinja), or the name of a well-known one
    ///
    /// Known are chatml, llama2, llama3, mistral, zephyr, gemma and vicuna. pp-run show prints the one of a file.
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
    ///
    /// They are never processed in files.
    #[arg(long, short = 'e', overrides_with = "no_escape")]
    pub escape: bool,
    /// Take them literally
    #[arg(long)]
    pub no_escape: bool,
    /// Print special tokens too [-sp]
    #[arg(long)]
    pub special: bool,
    /// Names of special tokens in your text stand for the tokens
    ///
    /// Otherwise text that is typed in a chat, or goes through a template, cannot smuggle in the model's control tokens.
    #[arg(long)]
    pub parse_special: bool,
    /// Prompts that are not UTF-8 are an error
    ///
    /// Otherwise what is not UTF-8 is replaced by U+FFFD, with a warning.
    #[arg(long)]
    pub strict_utf8: bool,
    /// Control characters of the answer reach the terminal, which obeys them
    ///
    /// Otherwise a terminal shows them; a pipe always gets the answer as it is.
    #[arg(long)]
    pub raw: bool,
    /// Lines of the chat end with a lone '/' instead of at each Enter [-mli]
    #[arg(long)]
    pub multiline_input: bool,
    /// Colours: on, off, auto [-co]
    ///
    /// auto heeds NO_COLOR, CLICOLOR_FORCE and TERM=dumb.
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "on", default_value = "auto", allow_negative_numbers = true)]
    pub color: String,
    /// No cursor control: no colours, no progress bars
    #[arg(long)]
    pub simple_io: bool,
    /// text, or json for one object
    ///
    /// The object has the text, counts, timings, peak memory and the reason for the end. It is for single answers, not for
    /// chats.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output_format: String,
    /// Copy the conversation to a file
    #[arg(long, short = 'o', value_name = "FILE", allow_hyphen_values = true)]
    pub output_file: Option<PathBuf>,
    /// Keep the prompt's keys and values in this file, for prompts that begin alike
    ///
    /// The next run with it processes only what its prompt does not have in common; the line of statistics says how much that
    /// was: 811 tokens (810 cached). A file that is damaged, or of another model, cache type, context, RoPE setting or --prune,
    /// is ignored with a warning and replaced; one that is something else is an error and never touched. With --prune, answers
    /// choose what they keep by what was processed in their own run.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub prompt_cache: Option<PathBuf>,
    /// Keep the answer's there too
    #[arg(long, requires = "prompt_cache", conflicts_with = "prompt_cache_ro")]
    pub prompt_cache_all: bool,
    /// Read the prompt cache, and never write it
    #[arg(long, requires = "prompt_cache")]
    pub prompt_cache_ro: bool,
    /// Write when each node of the prompt's graphs was computed, as a Chrome trace
    ///
    /// It is of one answer, not of a chat, for ui.perfetto.dev or chrome://tracing. Nodes are computed one by one then, which
    /// takes somewhat longer.
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
    ///
    /// The model is the chat's, unless -m names another. A text from a pipe, or -p, is one turn of it. With the same model
    /// nothing is tokenised anew, and with --prompt-cache nothing is computed again.
    #[arg(long = "continue", value_name = "CHAT", num_args = 0..=1, default_missing_value = "", help_heading = "Chat")]
    pub resume: Option<String>,
    /// Do not save this chat
    ///
    /// What is typed still goes to the history, unless --no-history is given too.
    #[arg(long, help_heading = "Chat")]
    pub no_save: bool,
    /// Do not write what is typed to the history
    #[arg(long, help_heading = "Chat")]
    pub no_history: bool,
    /// What to do when the context is full: ask, stop, shift, summarise
    ///
    /// It is announced at 80%, and nothing is dropped silently. shift forgets turns after the first, the oldest of them first,
    /// until the rest takes half of the context; summarise puts a summary, which the model writes, in the place of the older
    /// half of the turns; stop takes no more turns until you make room.
    #[arg(long, value_name = "WHAT", default_value = "ask", help_heading = "Chat")]
    pub context_full: String,
    #[arg(long, hide = true)]
    pub context_shift: bool,
    /// Show Markdown as what it means: on, off, auto
    ///
    /// auto is on for a terminal with colours. Headings, bold text, lists and code look like that, code has the colours of its
    /// language, and reasoning is dimmed.
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Chat")]
    pub markdown: String,
    /// Keep words whole at the terminal's right edge: on, off, auto
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Chat")]
    pub wrap: String,
    /// Where flags are set for all answers and chats [default: ~/.config/pp-run/config.toml]
    ///
    /// See CONFIGURATION below.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub config: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub offline: bool,
    /// Shortest prompt, and shortest answer, that is pruned, in tokens [default: auto]
    ///
    /// auto is where each begins to pay, measured on this machine when the first prompt and the first answer come.
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
    /// List what --prune can leave out
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
    /// Leave out the means by position: a smaller file, but no --prune-history position and no --prune-paper
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
    ///
    /// An answer is pruned by what its prompt shows, so tests of generation with --prune need some.
    #[arg(long, short = 'd', value_name = "N,..", default_value = "0")]
    pub n_depth: Vec<String>,
    /// Repetitions of each test
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    pub repetitions: u32,
    /// Format: md, json, csv
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "md")]
    pub output: String,
    /// Run llama.cpp's own engine alternately in the same process, and print the ratio: llama.cpp
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
    /// Shortest prompt, and shortest answer, that is pruned, in tokens [default: auto]
    ///
    /// auto is where each begins to pay, measured on this machine when the first prompt and the first answer come.
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
