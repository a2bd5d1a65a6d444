//! The command line as clap sees it, after [`super::normalise`].

use clap::{Parser, Subcommand};

use super::batch::BatchArgs;
use super::bench::BenchArgs;
use super::cache::CacheArgs;
use super::calibrate::CalibrateArgs;
use super::chats::ChatsArgs;
use super::eval::EvalArgs;
use super::manual::AFTER_HELP;
use super::perplexity::PerplexityArgs;
use super::run::RunArgs;
use super::show::ShowArgs;
use super::tokenize::TokenizeArgs;

/// Runs a GGUF language model in the terminal, offline.
///
/// With -p (or -f, or text on stdin) pp-run answers and exits; on a terminal without a prompt it chats. pp-run FILE.gguf
/// PROMPT is short for pp-run -m FILE.gguf -p PROMPT, and pp-run alone lists the models that it finds. pp-run help COMMAND shows the flags
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

/// What else pp-run does.
#[derive(Debug, Subcommand)]
#[command(args_override_self = true)]
pub enum Sub {
    /// An answer for each row of a file, several at a time
    ///
    /// Rows are JSON, one a line: an object with prompt or messages, and what is to be other for this row than the flags say, by the flags'
    /// names: {"id": 7, "prompt": "Why?", "n": 100, "temperature": 0}. messages is a list of {"role": ..., "content": ...} with a question at its
    /// end; system is a row's own system prompt; json_schema may be the schema itself, and stop a list. A row without an id has the number of
    /// its line. A field that is not known is an error of its row.
    ///
    /// Each answer is a line of the output, written and synced when it ends: the object of --output-format json, after the row's id. A row
    /// that failed has an error instead; the run goes on, and its exit code is 1. The same command goes on where it was interrupted: rows
    /// with an answer are not asked again, those that failed are.
    ///
    /// An answer is the one that pp-run -p gives with the same seed, bit by bit, whatever else is in the file: up to 8 answers are computed in
    /// one step where that is so (pp-run's own kernels throughout, flash attention), and one by one elsewhere. What a row's prompt has in
    /// common with the one before it, such as the system prompt, is read once, unless reading is pruned.
    #[command(after_long_help = "\
EXAMPLES
  pp-run batch -m model.gguf -i prompts.jsonl -o answers.jsonl -sys \"Be brief.\" --seed 1
  From a pipe into a pipe:
    jq -c '{id: .key, prompt: .question}' questions.json | pp-run batch -m model.gguf --temp 0 | jq -r .text")]
    Batch(Box<BatchArgs>),
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
  Against another quantisation, as llama-perplexity does it:
    pp-run perplexity -m f16.gguf -f text.txt --kl-divergence-base f16.kld
    pp-run perplexity -m q4.gguf -f text.txt --kl-divergence-base f16.kld --kl
  The paper's protocol and configuration:
    pp-run perplexity -m model.gguf -f text.txt --batch 20 \\
      --seq 1024 --chunks 20 --prune 0.4 --prune-paper"
    )]
    Perplexity(PerplexityArgs),
    /// Accuracy of a model on questions with choices, as lm-evaluation-harness computes it
    ///
    /// Tasks are files that you have; nothing is downloaded. Each choice's likelihood after its context is computed, contexts once for all
    /// their choices. A table is on stdout; with -o result files are written which lm-evaluation-harness's tools read.
    #[command(after_long_help = "\
EXAMPLES
  pp-run eval -m model.gguf --tasks piqa,hellaswag --data rows -o results
  Reading with a quarter of the weights left out, against dense:
    pp-run eval -m model.gguf --tasks boolq --data rows -o results --read --prune 0.25
    pp-run eval --compare results/model results/model-pp-0.25-read
  The paper's table:
    pp-run calibrate -m model.gguf -f text.txt --seq-len 512 --seqs 2000
    pp-run eval -m model.gguf --rules pp --data rows \\
      --tasks boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa \\
      --methods dense,full-batch,pp,static,wanda-sp,flap --ratios 0.2,0.4")]
    Eval(Box<EvalArgs>),
    /// What leaving out parts of a model costs, and statistics of its blocks, written next to it
    ///
    /// Costs are for --prune auto and --prune-plan calibrated: what follows a text is compared with what follows it when it was read
    /// densely, with each block pruned alone and then for whole budgets.
    ///
    /// For statistics the dense model runs over the windows of a text, and means and fluctuations of its channels are written to a file. They
    /// are needed by --prune-history channel and position (so by --prune-paper) and by --prune-method static, wanda-sp, flap
    /// and flap-as-coded; a plain --prune needs none. Without -f the model writes the text itself.
    ///
    /// Means by position, for --prune-history position, take 4 bytes for each channel of each layer and position.
    Calibrate(CalibrateArgs),
    /// Speed of prompt processing and generation, as llama-bench measures it
    ///
    /// pp512 is a prompt of 512 tokens, tg128 an answer of 128, step4 four tokens at once; @ d512 means that 512 tokens were in the cache before. Each
    /// test runs once to warm up, then -r times, with all ratios of --prune and the baseline alternately in one process;
    /// ratios are medians over the repetitions, and more than 1 means that pp-run is faster.
    #[command(after_long_help = "\
EXAMPLES
  pp-run bench -m model.gguf -p 512 -n 128 --baseline llama.cpp
  All ratios in one process, alternately:
    pp-run bench -m model.gguf -p 512 -n 128 -d 512 \\
      --prune 0,0.2,0.4 --baseline llama.cpp
  What 2 to 16 tokens at once cost after 512 others, beside one:
    pp-run bench -m model.gguf --steps 1-16 -d 512
  Prompts and answers after a long context:
    pp-run bench -m model.gguf -p 512 -n 32 -d 8192,32768")]
    Bench(BenchArgs),
    /// Saved chats: lists them; shows one as text, or deletes
    ///
    /// pp-run --continue CHAT goes on with one.
    Chats(ChatsArgs),
    /// Long prompts that are kept so that none is processed twice: lists them, or deletes them
    ///
    /// See --no-prompt-cache and --prompt-cache-limit.
    Cache(CacheArgs),
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
