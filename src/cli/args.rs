//! The command line as clap sees it, after [`super::normalise`].

use clap::{Parser, Subcommand};

use super::bench::BenchArgs;
use super::calibrate::CalibrateArgs;
use super::chats::ChatsArgs;
use super::perplexity::PerplexityArgs;
use super::run::RunArgs;
use super::show::ShowArgs;
use super::tokenize::TokenizeArgs;

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
