//! Flags of `pp-run tokenize`, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use super::value::unescape;
use crate::commands::tokenize::Options;

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

pub fn options(a: TokenizeArgs) -> Options {
    Options {
        path: a.model,
        prompt: a.prompt.map(|p| if a.no_escape { p } else { unescape(&p) }),
        prompt_file: a.file,
        ids: a.ids,
        show_count: a.show_count,
        no_bos: a.no_bos,
        no_parse_special: a.no_parse_special,
    }
}
