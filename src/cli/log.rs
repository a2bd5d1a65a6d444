//! Flags about messages, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use crate::log::Options;

#[derive(Debug, Args)]
#[command(next_help_heading = "Messages (stderr)")]
pub struct LogArgs {
    /// All messages
    #[arg(long, short = 'v', alias = "log-verbose")]
    pub verbose: bool,
    /// 0 output, 1 errors, 2 warnings, 3 notes and statistics, 4 and 5 trace [-lv]
    #[arg(long, alias = "log-verbosity", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub verbosity: Option<u8>,
    /// Errors only
    #[arg(long, short = 'q', alias = "log-disable")]
    pub quiet: bool,
    /// Copy messages to a file (appended)
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

pub fn options(a: LogArgs) -> Options {
    let verbosity = if a.quiet {
        1
    } else if a.verbose {
        5
    } else {
        a.verbosity.unwrap_or(3)
    };
    Options { verbosity, file: a.log_file }
}
